import { setTimeout as sleep } from 'node:timers/promises'

/** Looks again and again. @throws Error with `what` when it has not come true in time */
export async function until(test: () => Promise<boolean> | boolean, what = 'it', withinMs = 15_000): Promise<void> {
  for (const since = performance.now(); !(await test()); await sleep(10))
    if (performance.now() - since > withinMs) throw new Error(`${what} did not come true within ${withinMs / 1_000} s`)
}
