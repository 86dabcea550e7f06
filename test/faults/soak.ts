import { mkdtempSync, readdirSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { parseArgs } from 'node:util'
import { lineChart } from '../../bench/chart.js'
import { memoryOf } from '../../bench/measure.js'
import { onDatabase, startTestPostgres } from '../helpers/postgres.js'
import type { RunningServer } from '../helpers/process.js'
import { startProxy } from '../helpers/proxy.js'
import { startRedis } from '../helpers/redis.js'
import { createRandom, SEED } from '../helpers/random.js'
import { createWorld } from './world.js'

/**
 * `npm run soak -- --minutes N [--seed S]` (F34): a load on two instances, and faults at random from the seed. Ends with 1 when a rule
 * was broken. Memory, file descriptors and the size of the table are charted into a folder that it names.
 */
const PAUSE_MS = [5_000, 15_000] as const
const OUTAGE_MS = [1_000, 8_000] as const
const SAMPLE_MS = 5_000
/** All faults are explained by these; a repeat needs a lost socket. */
const ALLOWED = ['lost', 'shutting_down', 'timeout', 'unavailable', 'overloaded']
const WITHIN_MS = 37_000 // a claim whose answer was lost waits for its lease

const { values } = parseArgs({ options: { minutes: { type: 'string', default: '10' }, seed: { type: 'string', default: String(SEED) } } })
const minutes = Number(values.minutes)
const random = createRandom('soak', Number(values.seed))
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
  let redis = await startRedis()
  t.teardown(() => redis.kill())
  const proxy = await startProxy(redis)
  t.teardown(() => proxy.close())
  const urls = [redis.url, `redis://127.0.0.1:${proxy.port}`]
  const servers: RunningServer[] = await Promise.all(urls.map((REDIS_URL) => world.start({ REDIS_URL })))
  const { connections } = await world.load({ from: servers, to: [...servers].reverse(), perSecond: 100 })
  world.ledger.touched(connections)

  const end = async (signal: 'SIGKILL' | 'SIGTERM') => {
    const which = random.between(0, 1)
    const former = servers[which]!
    await former.end(signal)
    servers[which] = await world.start({ REDIS_URL: urls[which]!, PORT: new URL(former.url).port })
  }
  const faults: Record<string, () => Promise<void>> = {
    'kill -9 of an instance': () => end('SIGKILL'),
    'SIGTERM of an instance': () => end('SIGTERM'),
    async 'Redis killed, back empty'() {
      await redis.kill()
      await sleep(random.between(...OUTAGE_MS))
      redis = await startRedis({ port: redis.port })
    },
    async 'one instance cut off from Redis'() {
      proxy.blackHole()
      await sleep(random.between(...OUTAGE_MS))
      proxy.heal()
    },
  }

  const samples = startSampling(servers, world.databaseUrl)
  const until = performance.now() + minutes * 60_000
  let done = 0
  while (performance.now() < until) {
    await sleep(random.between(...PAUSE_MS))
    const name = Object.keys(faults)[random.between(0, Object.keys(faults).length - 1)]!
    await faults[name]!()
    const { added, received, repeats, lost, worstDelayMs } = world.ledger.report()
    say(
      `${++done} ${name}: ${added} acknowledged, ${received} received, ${lost.length} waiting, ${repeats} repeats, worst ${Math.round(worstDelayMs)} ms`,
    )
  }
  const violations = await world.finish({ withinMs: WITHIN_MS, maxRepeats: Infinity, allowed: ALLOWED })
  const folder = writeCharts(await samples.stop())
  say(`${done} faults, ${JSON.stringify(world.outcomes.failures)}; charts in ${folder}`)
  const found = Object.entries(violations).filter(([, complaints]) => complaints.length > 0)
  for (const [rule, complaints] of found) say(`${rule} broken: ${complaints.slice(0, 5).join(', ')}`)
  say(found.length === 0 ? 'no rule was broken' : `the same again: npm run soak -- --minutes ${minutes} --seed ${values.seed}`)
  return found.length === 0
}

interface Sample {
  second: number
  /** Of each instance; one that is being started has none. */
  mib: (number | undefined)[]
  files: (number | undefined)[]
  tableMib: number
}

function startSampling(servers: readonly RunningServer[], databaseUrl: string) {
  const samples: Sample[] = []
  const started = performance.now()
  let stopped = false
  const sampling = (async () => {
    while (!stopped) {
      const [row] = await onDatabase(databaseUrl, "SELECT pg_total_relation_size('queued_messages')::float8 AS bytes")
      samples.push({
        second: (performance.now() - started) / 1_000 + 1, // the axis is logarithmic
        mib: servers.map(({ pid }) => ifAlive(() => memoryOf(pid) / 2 ** 20)),
        files: servers.map(({ pid }) => ifAlive(() => readdirSync(`/proc/${pid}/fd`).length)),
        tableMib: (row!.bytes as number) / 2 ** 20,
      })
      await sleep(SAMPLE_MS)
    }
  })()
  return {
    async stop() {
      stopped = true
      await sampling
      return samples
    },
  }
}

function ifAlive(read: () => number): number | undefined {
  try {
    return read()
  } catch {
    return undefined
  }
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
