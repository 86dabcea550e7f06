import { mkdtempSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { lineChart } from '../../bench/chart.js'
import { startTestPostgres } from '../helpers/postgres.js'
import { createRandom, SEED } from '../helpers/random.js'
import { growth, liveThroughFaults, SOAK_BOUNDS, type Sample } from './random-faults.js'
import { createWorld } from './world.js'

/**
 * `npm run soak -- --minutes N [--seed S]` (F34): a load on two instances, and faults at random from the seed. Ends with 1 when a rule was
 * broken, or memory, file descriptors or the table grew. All three are charted into a folder that it names.
 */
const { values } = parseArgs({ options: { minutes: { type: 'string', default: '10' }, seed: { type: 'string', default: String(SEED) } } })
const minutes = Number(values.minutes)
const ends: (() => unknown)[] = []
const t = { teardown: (end: () => unknown) => void ends.unshift(end) }

const postgres = await startTestPostgres()
process.env.TEST_DATABASE_URL = postgres.url
t.teardown(() => postgres.stop())
try {
  process.exitCode = (await soak()) ? 0 : 1
} finally {
  for (const end of ends) await end()
}

async function soak(): Promise<boolean> {
  const say = (text: string) => console.log(`${new Date().toISOString().slice(11, 19)} ${text}`)
  say(`seed ${values.seed}, ${minutes} minutes`)
  const world = await createWorld(t, 'soak')
  const random = createRandom('soak', Number(values.seed))
  const { samples, faults } = await liveThroughFaults(t, world, { minutes, random, say })
  const violations = await world.finish(SOAK_BOUNDS)
  const { complaints, peaks } = growth(samples)
  say(`${faults} faults, ${JSON.stringify(world.outcomes.failures)}; ${peaks}; charts in ${writeCharts(samples)}`)
  const found = Object.entries({ ...violations, 'what must stay flat': complaints }).filter(([, broken]) => broken.length > 0)
  for (const [rule, broken] of found) say(`${rule} broken: ${broken.slice(0, 5).join(', ')}`)
  say(found.length === 0 ? 'no rule was broken' : `the same again: npm run soak -- --minutes ${minutes} --seed ${values.seed}`)
  return found.length === 0
}

function writeCharts(samples: readonly Sample[]): string {
  const folder = mkdtempSync(join(tmpdir(), 'mpr-soak-'))
  const line = (name: string, of: (sample: Sample) => number | undefined) => ({
    name,
    points: samples.flatMap((sample) => (of(sample) === undefined ? [] : [[sample.second, of(sample)!] as const])),
  })
  const both = (of: (sample: Sample, which: number) => number | undefined) =>
    ['instance a', 'instance b'].map((name, which) => line(name, (sample) => of(sample, which)))
  const charts = {
    memory: { title: 'Resident memory', y: 'MiB', series: both(({ mib }, which) => mib[which]) },
    files: { title: 'Open file descriptors', y: 'descriptors', series: both(({ files }, which) => files[which]) },
    table: { title: 'The queue on disk', y: 'MiB', series: [line('queued_messages', ({ tableMib }) => tableMib)] },
  }
  for (const [name, chart] of Object.entries(charts)) writeFileSync(join(folder, `${name}.svg`), lineChart({ ...chart, x: 'seconds' }))
  return folder
}
