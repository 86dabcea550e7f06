/**
 * How something ended: called once, and not before what it was given to returns. In place of a promise, on the path of every message: what a call in
 * flight holds lies outside the caches when it is answered. docs/decisions/0008
 */
export type Told<T> = (result: T | Error) => void

/** For whoever would rather wait. */
export function promised<T>(run: (told: Told<T>) => void): Promise<T> {
  return new Promise((resolve, reject) => run((result) => (result instanceof Error ? reject(result) : resolve(result))))
}
