import { readdirSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { memoryOf } from '../../bench/measure.js'
import { onDatabase } from '../helpers/postgres.js'
import type { RunningServer } from '../helpers/process.js'
import { startProxy } from '../helpers/proxy.js'
import type { Random } from '../helpers/random.js'
import { startRedis } from '../helpers/redis.js'
import type { World } from './world.js'

/** F34: a load on two instances, and faults at random. What must stay flat is sampled. */

const PAUSE_MS = [5_000, 15_000] as const
const OUTAGE_MS = [1_000, 8_000] as const
const SAMPLE_MS = 2_000
const PER_SECOND = 100

/** All faults are explained by these; a repeat needs a lost socket. */
export const SOAK_BOUNDS = {
  withinMs: 10_000,
  maxRepeats: Infinity,
  allowed: ['lost', 'shutting_down', 'timeout', 'unavailable', 'overloaded'],
}

export interface Sample {
  second: number
  /** Of each instance; one that is being started has none. */
  mib: (number | undefined)[]
  files: (number | undefined)[]
  tableMib: number
}

interface SoakOptions {
  minutes: number
  random: Random
  /** Told after each fault. */
  say(text: string): void
}

/** @returns samples of what must stay flat, and how many faults there were; the rules are the world's affair */
export async function liveThroughFaults(
  t: { teardown(end: () => unknown): void },
  world: World,
  { minutes, random, say }: SoakOptions,
): Promise<{ samples: Sample[]; faults: number }> {
  let redis = await startRedis()
  t.teardown(() => redis.kill())
  const proxy = await startProxy(redis)
  t.teardown(() => proxy.close())
  const urls = [redis.url, `redis://127.0.0.1:${proxy.port}`]
  const servers: RunningServer[] = await Promise.all(urls.map((REDIS_URL) => world.start({ REDIS_URL })))
  const { connections } = await world.load({ from: servers, to: [...servers].reverse(), perSecond: PER_SECOND })
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

  const sampling = startSampling(servers, world.databaseUrl)
  let done = 0
  for (const until = performance.now() + minutes * 60_000; performance.now() < until;) {
    await sleep(random.between(...PAUSE_MS))
    const name = Object.keys(faults)[random.between(0, Object.keys(faults).length - 1)]!
    await faults[name]!()
    const { added, received, repeats, lost, worstDelayMs } = world.ledger.report()
    say(
      `${++done} ${name}: ${added} acknowledged, ${received} received, ${lost.length} waiting, ${repeats} repeats, worst ${Math.round(worstDelayMs)} ms`,
    )
  }
  return { samples: await sampling.stop(), faults: done }
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

/** Peaks of the last third against those of the one before: the first is when caches and pools fill. */
const MAY_GROW = 1.2
const KINDS = {
  'resident memory': { of: ({ mib }: Sample) => mib, unit: 'MiB', slack: 10 },
  'open files': { of: ({ files }: Sample) => files, unit: 'files', slack: 10 },
  'the queue on disk': { of: ({ tableMib }: Sample) => [tableMib], unit: 'MiB', slack: 10 },
}

/** What grew and should have stayed flat, and the peaks of what stayed so. */
export function growth(samples: readonly Sample[]): { complaints: string[]; peaks: string } {
  const third = Math.floor(samples.length / 3)
  const peak = (part: readonly Sample[], of: (sample: Sample) => readonly (number | undefined)[]) =>
    Math.max(0, ...part.flatMap(of).filter((value) => value !== undefined))
  const rows = Object.entries(KINDS).map(([name, { of, unit, slack }]) => ({
    ...{ name, unit, slack },
    before: peak(samples.slice(third, 2 * third), of),
    after: peak(samples.slice(2 * third), of),
  }))
  const text = ({ name, unit, before, after }: (typeof rows)[number]) => `${name} ${Math.round(before)} → ${Math.round(after)} ${unit}`
  return {
    complaints: rows.filter(({ before, after, slack }) => after > before * MAY_GROW + slack).map(text),
    peaks: rows.map(text).join(', '),
  }
}
