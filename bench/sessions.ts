/*
 * Question: what do 5,000 live sessions cost one instance, on one socket (a mediator's) and on 5,000 sockets of one session
 * each: to open, in memory, when idle, to look after every 5 s, and when all go away at once?
 *
 *   npx tsx bench/sessions.ts [--json] [postgres | redis]
 *
 * The bus may be named; Postgres is the default. Exit code 1 when the last 100 sessions are more than 1.5 times slower to open
 * than the first 100, each relative to an addMessage of the same moments (medians; the machine is never quiet), or when sessions stay behind.
 */
import { randomUUID } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import pg from 'pg'
import { createPostgresSessions } from '../plugins/storage/postgres-sessions.js'
import { createQuery, type Query } from '../plugins/storage/query.js'
import { createDatabase, startTestPostgres } from '../test/helpers/postgres.js'
import { startServer } from '../test/helpers/process.js'
import { startRedis } from '../test/helpers/redis.js'
import { DID } from '../test/helpers/service.js'
import { inParallel, openClient, type Client } from './client.js'
import { cpuOf, cpuOfFamily, machine, median, memoryOf, postmasterOf, printTable } from './measure.js'

const SESSIONS = 5_000
const TIMED = 100
const IDLE_SECONDS = 15
const PARALLEL = 32
const MAX_RATIO = 1.5
const LEASE_MS = 30_000
const MARKED_PER_SESSION = 10

async function measure(server: string, bus: Record<string, string>, busPid: number | undefined, manySockets: boolean) {
  const database = await createDatabase(server)
  const client = new pg.Client(database.url)
  await client.connect()
  const service = await startServer({ DATABASE_URL: database.url, LOG_LEVEL: 'info', ...bus })
  const sockets: Client[] = []
  const open = async (connectionId: string) => {
    if (manySockets || sockets.length === 0) sockets.push(await openClient(service.ws))
    const socket = sockets.at(-1)!
    const started = performance.now()
    await socket.ask('addLiveSession', { connectionId, sessionId: 'bench' })
    return performance.now() - started
  }
  /** What a call costs at this moment, whatever else the machine does: the median of another call that commits one row. */
  const timed = async (connectionIds: string[]) => {
    const adds: number[] = []
    const controls: number[] = []
    for (const connectionId of connectionIds) {
      adds.push(await open(connectionId))
      const started = performance.now()
      await sockets.at(-1)!.ask('addMessage', { connectionId: 'control', recipientDids: [DID], payload: {} })
      controls.push(performance.now() - started)
    }
    return { addMs: median(adds), controlMs: median(controls) }
  }
  try {
    const postmaster = await postmasterOf(client)
    await warmUp(service.ws)
    const idle = async () => {
      const before = [cpuOf(service.pid), cpuOfFamily(postmaster), busPid ? cpuOf(busPid) : 0]
      await sleep(IDLE_SECONDS * 1_000)
      return [cpuOf(service.pid), cpuOfFamily(postmaster), busPid ? cpuOf(busPid) : 0].map(
        (us, i) => (us - before[i]!) / IDLE_SECONDS / 1_000,
      )
    }
    const idleEmpty = await idle()
    const memory = { before: memoryOf(service.pid), after: 0 }

    const ids = Array.from({ length: SESSIONS }, () => randomUUID())
    const first = await timed(ids.slice(0, TIMED))
    await inParallel(ids.slice(TIMED, -TIMED), PARALLEL, open)
    await sleep(2_000) // until Postgres has cleaned up after the crowd
    const last = await timed(ids.slice(-TIMED))

    const idleFull = await idle()
    memory.after = memoryOf(service.pid)
    const waiting = await timeWaiting(client, database.url)

    const closing = performance.now()
    const cpuBefore = [cpuOf(service.pid), cpuOfFamily(postmaster)]
    await Promise.all(sockets.map((socket) => socket.close()))
    let left = SESSIONS
    for (; left > 0 && performance.now() - closing < 60_000; await sleep(20)) {
      const { rows } = await client.query<{ left: number }>('SELECT count(*)::int AS left FROM live_sessions')
      left = rows[0]!.left
    }
    return {
      sockets: sockets.length,
      first,
      last,
      ratio: last.addMs / last.controlMs / (first.addMs / first.controlMs),
      memoryMiB: { before: memory.before / 2 ** 20, after: memory.after / 2 ** 20 },
      bytesPerSession: (memory.after - memory.before) / SESSIONS,
      /** CPU milliseconds per second: service, Postgres, bus. */
      idleEmpty,
      idleFull,
      ...waiting,
      closedMs: performance.now() - closing,
      closedCpuMs: { service: (cpuOf(service.pid) - cpuBefore[0]!) / 1_000, postgres: (cpuOfFamily(postmaster) - cpuBefore[1]!) / 1_000 },
      left,
      warnings: service.log.filter(({ level }) => level >= 40).map(({ msg }) => msg),
    }
  } finally {
    await service.end('SIGTERM')
    await client.end()
    await database.drop()
  }
}

/** Until the code is compiled: otherwise the first sessions are slower than the last ones. */
async function warmUp(url: string): Promise<void> {
  const socket = await openClient(url)
  for (let i = 0; i < 500; i++) {
    const connectionId = randomUUID()
    await socket.ask('addLiveSession', { connectionId, sessionId: 'warm' })
    await socket.ask('removeLiveSession', { connectionId, sessionId: 'warm' })
  }
  await socket.close()
}

/** The statement of the service itself, for the instance that has the sessions: with empty queues, and with un-acked mail in each. */
async function timeWaiting(client: pg.Client, url: string): Promise<{ waitingMs: number; waitingMarkedMs: number }> {
  const { rows } = await client.query<{ id: string }>('SELECT instance_id AS id FROM live_sessions LIMIT 1')
  const pool = new pg.Pool({ connectionString: url, max: 1 })
  await pool.query('SET enable_seqscan = off') // as the service does; there is only one connection
  const query = createQuery(pool)
  const asService: Query = (statement, values) => query(statement, [rows[0]!.id, ...values.slice(1)])
  const directory = createPostgresSessions({ pool, query: asService })
  const time = async () => {
    const times: number[] = []
    for (let i = 0; i < 20; i++) {
      const started = performance.now()
      await directory.waiting(LEASE_MS)
      times.push(performance.now() - started)
    }
    return median(times)
  }
  const waitingMs = await time()
  await client.query(`INSERT INTO queued_messages (connection_id, tag, recipient_dids, payload, payload_bytes, in_flight_epoch, in_flight_until, in_flight_taken, deliveries)
    SELECT connection_id, 1, '{}', '{}', 2, epoch, now() + interval '1 hour', false, 1 FROM live_sessions, generate_series(1, ${MARKED_PER_SESSION})`)
  const waitingMarkedMs = await time()
  await client.query('DELETE FROM queued_messages')
  await pool.end()
  return { waitingMs, waitingMarkedMs }
}

const isJson = process.argv.includes('--json')
const postgres = await startTestPostgres()
const redis = process.argv.includes('redis') ? await startRedis() : undefined
const results: Awaited<ReturnType<typeof measure>>[] = []
try {
  for (const manySockets of [false, true])
    results.push(await measure(postgres.url, redis ? { REDIS_URL: redis.url } : {}, redis?.child.pid, manySockets))
} finally {
  await redis?.kill()
  await postgres.stop()
}

if (isJson) console.log(JSON.stringify({ ...machine(), bus: redis ? 'redis' : 'postgres', results }, undefined, 2))
else {
  console.log(Object.values(machine()).join(' · '), `· bus ${redis ? 'redis' : 'postgres'}\n`)
  const [one, many] = results as [(typeof results)[number], (typeof results)[number]]
  const row = (name: string, value: (result: (typeof results)[number]) => string) => [name, value(one), value(many)]
  printTable(
    [`${SESSIONS} live sessions`, 'on 1 socket', `on ${many.sockets} sockets`],
    [
      row(`first ${TIMED}: addLiveSession (and addMessage), ms`, (r) => `${r.first.addMs.toFixed(2)} (${r.first.controlMs.toFixed(2)})`),
      row(`last ${TIMED}: addLiveSession (and addMessage), ms`, (r) => `${r.last.addMs.toFixed(2)} (${r.last.controlMs.toFixed(2)})`),
      row('  growth, relative to addMessage', (r) => r.ratio.toFixed(2)),
      row('memory of the service, MiB, before and after', (r) => `${r.memoryMiB.before.toFixed(0)} → ${r.memoryMiB.after.toFixed(0)}`),
      row('  KiB per session (and its socket)', (r) => (r.bytesPerSession / 1024).toFixed(1)),
      ...['service', 'Postgres', ...(redis ? ['Redis'] : [])].map((name, i) =>
        row(`idle, CPU ms per s, ${name}: empty and full`, (r) => `${r.idleEmpty[i]!.toFixed(1)} → ${r.idleFull[i]!.toFixed(1)}`),
      ),
      row('query `waiting`, median ms', (r) => r.waitingMs.toFixed(1)),
      row(`  with ${MARKED_PER_SESSION} un-acked messages in each session`, (r) => r.waitingMarkedMs.toFixed(1)),
      row('all sockets closed: ms until all sessions ended', (r) => r.closedMs.toFixed(0)),
      row('  CPU ms, service and Postgres', (r) => `${r.closedCpuMs.service.toFixed(0)} + ${r.closedCpuMs.postgres.toFixed(0)}`),
    ],
  )
  for (const { warnings } of results) if (warnings.length > 0) console.log('the service warned:', [...new Set(warnings)].join('; '))
}

for (const { sockets, ratio, left } of results) {
  if (ratio > MAX_RATIO)
    console.error(
      `${sockets} sockets: the last sessions were ${ratio.toFixed(2)} times slower to open than the first, more than ${MAX_RATIO}`,
    )
  if (left > 0) console.error(`${sockets} sockets: ${left} sessions did not end within 60 s`)
  if (ratio > MAX_RATIO || left > 0) process.exitCode = 1
}
