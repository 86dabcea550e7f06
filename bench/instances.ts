/*
 * Question: does a message reach a wallet that is live at another instance complete, in order, and about as soon as at the
 * same instance; and what does it cost, for each kind of bus?
 *
 *   npx tsx bench/instances.ts [--json] [postgres] [redis] [cluster]
 *
 * Two real server processes, one Postgres. The load runs on the same cores, so compare within a run. Exit code 1 when a message
 * was lost, repeated or out of order, or when the p99 across instances is more than three times the local one.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import pg from 'pg'
import { createDatabase, startTestPostgres } from '../test/helpers/postgres.js'
import { startServer, type RunningServer } from '../test/helpers/process.js'
import { startCluster, startRedis } from '../test/helpers/redis.js'
import { openMailboxes, type Arrival, type Mailboxes } from './mailboxes.js'
import { cpuOf, cpuOfFamily, machine, median, percentile, postmasterOf, printTable } from './measure.js'
import { inParallel, openSocket, type BenchSocket } from './socket.js'

const BACKENDS = ['postgres', 'redis', 'cluster']
const MESSAGES = 10_000
const SESSIONS = 200
const BURSTS = 3
const SENDING_SOCKETS = 8
const IN_FLIGHT_PER_SOCKET = 64
const PER_SECOND = 200
const SECONDS = 15
const MAX_RATIO = 3

interface Bus {
  settings: Record<string, string>
  pids: number[]
  stop(): Promise<void>
}

async function startBus(backend: string): Promise<Bus> {
  if (backend === 'redis') {
    const redis = await startRedis()
    return { settings: { REDIS_URL: redis.url }, pids: [redis.child.pid!], stop: () => redis.kill() }
  }
  if (backend === 'cluster') {
    const cluster = await startCluster()
    return { settings: { REDIS_NODES: cluster.list }, pids: cluster.nodes.map(({ child }) => child.pid!), stop: () => cluster.stop() }
  }
  return { settings: {}, pids: [], stop: async () => {} }
}

interface Cost {
  senderUs: number
  receiverUs: number
  postgresUs: number
  redisUs: number
}

/** CPU per message (µs) of each process while `work` runs. */
async function costOf(
  messages: number,
  pids: { a: number; b: number; postgres: number; redis: number[] },
  work: () => Promise<void>,
): Promise<Cost> {
  const read = () => [cpuOf(pids.a), cpuOf(pids.b), cpuOfFamily(pids.postgres), cpuOf(...pids.redis)]
  const before = read()
  await work()
  const [senderUs, receiverUs, postgresUs, redisUs] = read().map((us, i) => Math.round((us - before[i]!) / messages)) as [
    number,
    number,
    number,
    number,
  ]
  return { senderUs, receiverUs, postgresUs, redisUs }
}

/** All messages for all connections, pipelined; each connection by one socket. @returns milliseconds until all are acked */
async function burst(sockets: BenchSocket[], mailboxes: Mailboxes, messages: number): Promise<number> {
  const started = performance.now()
  await Promise.all(
    sockets.map((socket, s) => {
      const mine = mailboxes.ids.filter((_, i) => i % sockets.length === s)
      const adds = Array.from({ length: messages / sockets.length }, (_, n) => mine[n % mine.length]!)
      return inParallel(adds, IN_FLIGHT_PER_SOCKET, (connectionId) => mailboxes.add(socket, connectionId))
    }),
  )
  await mailboxes.settled()
  return performance.now() - started
}

/** Sends at a fixed rate, however slow the answers, in pairs of one to each of two, the order of a pair by chance. */
async function atRate(socket: BenchSocket, two: [Mailboxes, Mailboxes], messages: number): Promise<void> {
  const started = performance.now()
  const running: Promise<void>[] = []
  let pair: Mailboxes[] = []
  for (let n = 0; n < messages;) {
    for (const due = ((performance.now() - started) / 1_000) * PER_SECOND; n < due && n < messages; n++) {
      if (pair.length === 0) pair = Math.random() < 0.5 ? [...two] : [two[1], two[0]]
      const mailboxes = pair.pop()!
      running.push(mailboxes.add(socket, mailboxes.ids[(n >> 1) % mailboxes.ids.length]!))
    }
    await sleep(1)
  }
  await Promise.all(running)
  await Promise.all(two.map((mailboxes) => mailboxes.settled()))
}

async function measure(backend: string, server: string) {
  const database = await createDatabase(server)
  const client = new pg.Client(database.url)
  await client.connect()
  const bus = await startBus(backend)
  const servers: RunningServer[] = []
  try {
    const settings = { DATABASE_URL: database.url, LOG_LEVEL: 'info', ...bus.settings }
    servers.push(...(await Promise.all([startServer(settings), startServer(settings)])))
    const [a, b] = servers as [RunningServer, RunningServer]
    const pids = { a: a.pid, b: b.pid, postgres: await postmasterOf(client), redis: bus.pids }
    const sockets = await Promise.all(Array.from({ length: SENDING_SOCKETS }, () => openSocket(a.ws)))

    const far = await openMailboxes(b.ws, SESSIONS, 4)
    await burst(sockets, far, MESSAGES / 2) // until the code is compiled
    const bursts: { ms: number; cost: Cost }[] = []
    for (let i = 0; i < BURSTS; i++) {
      let ms = 0
      const cost = await costOf(MESSAGES, pids, async () => void (ms = await burst(sockets, far, MESSAGES)))
      bursts.push({ ms: Math.round(ms), cost })
    }
    await far.close()

    const latencies = { local: [] as number[], cross: [] as number[] }
    const record = (list: number[]) => (arrival: Arrival) => void list.push(arrival.receivedAt - arrival.sentAt)
    const local = await openMailboxes(a.ws, SESSIONS / 2, 1, record(latencies.local))
    const cross = await openMailboxes(b.ws, SESSIONS / 2, 1, record(latencies.cross))
    await atRate(sockets[0]!, [local, cross], 2 * PER_SECOND)
    latencies.local.length = latencies.cross.length = 0
    const messages = SECONDS * PER_SECOND
    const rateCost = await costOf(messages, pids, () => atRate(sockets[0]!, [local, cross], messages))

    const { acksRepeated } = far.counts
    const { rows } = await client.query<{ left: number }>('SELECT count(*)::int AS left FROM queued_messages')
    const sum = (fault: keyof Mailboxes['faults']) => [far, local, cross].reduce((total, { faults }) => total + faults[fault], 0)
    const faults = { lost: sum('lost'), repeated: sum('repeated'), outOfOrder: sum('outOfOrder'), leftInQueue: rows[0]!.left }
    const [localMs, crossMs] = [latencies.local, latencies.cross].map((list) => ({
      p50: percentile(list, 0.5),
      p90: percentile(list, 0.9),
      p99: percentile(list, 0.99),
      max: Math.max(...list),
    })) as [Latency, Latency]
    await Promise.all([local.close(), cross.close(), ...sockets.map((socket) => socket.close())])
    return {
      backend,
      faults,
      bursts,
      acksRepeated,
      burstMs: median(bursts.map(({ ms }) => ms)),
      localMs,
      crossMs,
      ratioP99: crossMs.p99 / localMs.p99,
      rateCost,
    }
  } finally {
    await Promise.all(servers.map((instance) => instance.end('SIGTERM')))
    await bus.stop()
    await client.end()
    await database.drop()
  }
}

interface Latency {
  p50: number
  p90: number
  p99: number
  max: number
}

const wanted = process.argv.slice(2).filter((argument) => !argument.startsWith('--'))
const unknown = wanted.filter((backend) => !BACKENDS.includes(backend))
if (unknown.length > 0) throw new Error(`There is no backend ${unknown.join(', ')}. There are: ${BACKENDS.join(', ')}.`)
const isJson = process.argv.includes('--json')

const postgres = await startTestPostgres()
const results: Awaited<ReturnType<typeof measure>>[] = []
try {
  for (const backend of wanted.length > 0 ? wanted : BACKENDS) {
    if (!isJson) console.error(`measuring ${backend} …`)
    results.push(await measure(backend, postgres.url))
  }
} finally {
  await postgres.stop()
}

if (isJson) console.log(JSON.stringify({ ...machine(), results }, undefined, 2))
else {
  console.log(Object.values(machine()).join(' · '), '\n')
  console.log(
    `${MESSAGES} messages added at A for ${SESSIONS} sessions live at B, each acked; ${BURSTS} runs; CPU in µs per message of the median run`,
  )
  printTable(
    ['bus', 'ms', 'messages/s', 'CPU A', 'CPU B', 'Postgres', 'Redis', 'acks repeated', 'all runs, ms'],
    results.map(({ backend, burstMs, bursts, acksRepeated }) => {
      const { senderUs, receiverUs, postgresUs, redisUs } = bursts.find(({ ms }) => ms === burstMs)!.cost
      const runs = bursts.map(({ ms }) => ms).join(' ')
      return [backend, burstMs, Math.round((MESSAGES / burstMs) * 1_000), senderUs, receiverUs, postgresUs, redisUs, acksRepeated, runs]
    }),
  )
  console.log(`${PER_SECOND} messages/s for ${SECONDS} s at A, half for sessions at A, half at B: from addMessage to messagesReceived, ms`)
  printTable(
    ['bus', 'recipient', 'p50', 'p90', 'p99', 'max', 'ratio of p99'],
    results.flatMap(({ backend, localMs, crossMs, ratioP99 }) => [
      [backend, 'same', ...Object.values(localMs).map((ms: number) => ms.toFixed(1)), ''],
      ['', 'other', ...Object.values(crossMs).map((ms: number) => ms.toFixed(1)), ratioP99.toFixed(2)],
    ]),
  )
  console.log('CPU at that rate, µs per message')
  printTable(
    ['bus', 'A', 'B', 'Postgres', 'Redis'],
    results.map(({ backend, rateCost: { senderUs, receiverUs, postgresUs, redisUs } }) => [
      backend,
      senderUs,
      receiverUs,
      postgresUs,
      redisUs,
    ]),
  )
}

for (const { backend, faults, ratioP99 } of results) {
  for (const [fault, count] of Object.entries(faults)) {
    if (count === 0) continue
    console.error(`${backend}: ${count} ${fault}`)
    process.exitCode = 1
  }
  if (ratioP99 > MAX_RATIO) {
    console.error(`${backend}: the p99 across instances is ${ratioP99.toFixed(1)} times the local one, more than ${MAX_RATIO}`)
    process.exitCode = 1
  }
}
