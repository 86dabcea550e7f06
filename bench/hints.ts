/*
 * Question: what does a hint cost when many instances listen? With LISTEN/NOTIFY each hint goes to every instance, with Redis
 * only to the one that has the session.
 *
 *   npx tsx bench/hints.ts [--json]
 *
 * Only the bus, no queue: up to 32 subscribing buses in this process, one publishes 500 hints a second for 5 s. CPU of the bus
 * (Postgres or Redis) and of this process, which stands for all the instances, per hint; without what an idle second costs.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { Redis } from 'ioredis'
import pg from 'pg'
import { createPostgresPubSub } from '../plugins/pubsub/postgres.js'
import { createRedisPubSub, redisOptions } from '../plugins/pubsub/redis.js'
import { connectOptions } from '../plugins/storage/migrate.js'
import type { PubSub } from '../src/ports.js'
import { createDatabase, startTestPostgres } from '../test/helpers/postgres.js'
import { startRedis } from '../test/helpers/redis.js'
import { cpuOf, cpuOfFamily, machine, percentile, postmasterOf, printTable } from './measure.js'

const PER_SECOND = 500
const SECONDS = 5
const CONNECTIONS = 200
const log = { debug() {}, info() {}, warn() {}, error() {} }

async function measure(name: string, instances: number, create: () => PubSub, busCpu: () => number) {
  const buses = Array.from({ length: instances }, create)
  while (!buses.every((bus) => bus.isUp())) await sleep(20)
  const latencies: number[] = []
  const sentAt = new Map<string, number>()
  for (let i = 0; i < CONNECTIONS; i++) {
    const connectionId = `connection ${i}`
    await buses[i % instances]!.subscribe(connectionId, () => {
      const at = sentAt.get(connectionId)
      if (at !== undefined) latencies.push(performance.now() - at)
      sentAt.delete(connectionId)
    })
  }
  const read = () => [busCpu(), cpuOf(process.pid)]
  const during = async (work: () => Promise<void>) => {
    const before = read()
    await work()
    return read().map((us, i) => (us - before[i]!) / SECONDS) as [number, number]
  }
  const [idleBus, idleListeners] = await during(() => sleep(SECONDS * 1_000))
  const [bus, listeners] = await during(async () => {
    for (let n = 0, started = performance.now(); n < PER_SECOND * SECONDS; await sleep(1)) {
      for (; n < Math.min(PER_SECOND * SECONDS, ((performance.now() - started) / 1_000) * PER_SECOND); n++) {
        const connectionId = `connection ${n % CONNECTIONS}`
        sentAt.set(connectionId, performance.now())
        buses[0]!.publish(connectionId)
      }
    }
    await sleep(200)
  })
  await Promise.all(buses.map((one) => one.close()))
  return {
    name,
    instances,
    busUs: Math.round((bus - idleBus) / PER_SECOND),
    instancesUs: Math.round((listeners - idleListeners) / PER_SECOND),
    idleBusMs: idleBus / 1_000,
    p50: percentile(latencies, 0.5),
    arrived: latencies.length,
  }
}

const postgres = await startTestPostgres()
const database = await createDatabase(postgres.url)
const client = new pg.Client(database.url)
await client.connect()
const postmaster = await postmasterOf(client)
const redis = await startRedis()
const connect = connectOptions({ connectionString: database.url })
const results: Awaited<ReturnType<typeof measure>>[] = []
try {
  for (const instances of [2, 8, 32]) {
    results.push(
      await measure(
        'LISTEN/NOTIFY',
        instances,
        () => createPostgresPubSub({ connect, log }),
        () => cpuOfFamily(postmaster),
      ),
    )
    results.push(
      await measure(
        'Redis',
        instances,
        () => createRedisPubSub({ client: new Redis(redis.url, redisOptions), prefix: 'bench:', log }),
        () => cpuOf(redis.child.pid!),
      ),
    )
  }
} finally {
  await redis.kill()
  await client.end()
  await database.drop()
  await postgres.stop()
}

if (process.argv.includes('--json')) console.log(JSON.stringify({ ...machine(), results }, undefined, 2))
else {
  console.log(Object.values(machine()).join(' · '), `· ${PER_SECOND} hints/s\n`)
  printTable(
    ['bus', 'instances', 'bus CPU µs per hint', 'CPU of all instances', 'idle bus, CPU ms per s', 'p50 ms', 'arrived'],
    results.map(({ name, instances, busUs, instancesUs, idleBusMs, p50, arrived }) => [
      name,
      instances,
      busUs,
      instancesUs,
      idleBusMs.toFixed(1),
      p50.toFixed(1),
      arrived,
    ]),
  )
}
