/**
 * All choices at random of a run come from one seed: FAULTS_SEED repeats them. What the machine does in between (which call was
 * under way when a process was killed) is not repeated.
 */
export const SEED = Number(process.env.FAULTS_SEED ?? Math.floor(Math.random() * 2 ** 32))

export interface Random {
  /** From 0 to below 1. */
  (): number
  /** A whole number, both ends included. */
  between(low: number, high: number): number
  isOneIn(chances: number): boolean
}

/** @returns random numbers of its own for each name, so that what one scenario draws changes nothing for the others */
export function createRandom(name: string, seed = SEED): Random {
  const next = mulberry32([...name].reduce((hash, letter) => Math.imul(hash, 31) + letter.codePointAt(0)!, seed) | 0)
  return Object.assign(next, {
    between: (low: number, high: number) => low + Math.floor(next() * (high - low + 1)),
    isOneIn: (chances: number) => next() * chances < 1,
  })
}

/** [mulberry32] Small, and the same everywhere. */
export function mulberry32(state: number): () => number {
  return () => {
    state = (state + 0x6d2b79f5) | 0
    let x = Math.imul(state ^ (state >>> 15), 1 | state)
    x = (x + Math.imul(x ^ (x >>> 7), 61 | x)) ^ x
    return ((x ^ (x >>> 14)) >>> 0) / 2 ** 32
  }
}
