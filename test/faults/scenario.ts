import t, { type Test } from 'tap'
import { SEED } from '../helpers/random.js'
import { record, rowOf } from './report.js'
import { RULES, type Bounds, type Rule } from './rules.js'
import { createWorld, FULL, type World } from './world.js'

export { createWorld, FULL, settled, type World } from './world.js'

/*
 * What all scenarios share: real processes on one Postgres, a load on them, and in the end one check by one ledger.
 * `npm run faults` runs them at full length; in `npm test` outages and loads are shorter.
 */
export const LOAD_MS = FULL ? 10_000 : 3_000
/** For what takes long even when it is short. */
export const onlyFull = !FULL && 'npm run faults'
export const withoutRedis = (process.env.SKIP_TESTS ?? '').split(',').includes('redis') && 'left out by SKIP_TESTS=redis'

export interface ScenarioOptions extends Bounds {
  skip?: string | false
  /** Fewer acknowledged adds were no load. */
  atLeast?: number
}

/** A test of one fault. `run` does the damage; the rules are checked after it. */
export function scenario(
  name: string,
  { skip, atLeast = 100, ...bounds }: ScenarioOptions,
  run: (t: Test, world: World) => Promise<void>,
): void {
  t.test(name, { skip }, async (t) => {
    t.comment(`FAULTS_SEED=${SEED}`)
    const started = performance.now()
    const facts: string[] = []
    const world = await createWorld(t, name, (fact) => facts.push(fact))
    let passed = false
    try {
      await run(t, world)
      const broken = await world.finish(bounds)
      for (const rule of Object.keys(RULES) as Rule[]) t.same(broken[rule], [], `${rule} ${RULES[rule]}`)
      t.ok(world.ledger.report().added >= atLeast, 'there was a load')
      passed = t.passing()
    } finally {
      const seconds = (performance.now() - started) / 1_000
      const row = { ...rowOf(name, world.ledger.report(), world.outcomes), passed, seconds, measured: facts.join('; ') }
      record(row)
      t.comment(JSON.stringify(row))
    }
  })
}
