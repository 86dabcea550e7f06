import { randomUUID } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import pg from 'pg'
import { memoryOf } from '../../bench/measure.js'
import { startFragilePostgres } from '../helpers/fragile-postgres.js'
import { onDatabase } from '../helpers/postgres.js'
import { startProxy } from '../helpers/proxy.js'
import { DID } from '../helpers/service.js'
import { newOutcomes, openClient, type Client } from './client.js'
import { FULL, LOAD_MS, onlyFull, scenario, settled } from './scenario.js'
import { drain } from './load.js'
import { throughProxy, watch } from './watch.js'

/* What may happen to Postgres and on the way there. */

const MIB = 1024 * 1024
const DOWN_MS = FULL ? 10_000 : 3_000
const SLOW_MS = FULL ? 15_000 : 4_000
const LOCKED_MS = FULL ? 30_000 : 5_000
const ROUNDS = FULL ? 30 : 5
const AT_ONCE = 10
const QUOTA = 30
/** Its recovery, and whoever waits is looked after every second then. */
const SEEN_TO_MS = 7_000

async function untilAdds(client: Client, withinMs: number): Promise<number> {
  const started = performance.now()
  const connectionId = randomUUID()
  await settled(
    () =>
      client.call('addMessage', { connectionId, recipientDids: [DID], payload: {} }).then(
        () => true,
        () => false,
      ),
    withinMs,
  )
  const took = performance.now() - started
  await client.call('takeFromQueue', { connectionId, deleteMessages: true })
  return took
}

scenario(
  'F4: kill -9 of Postgres, back after a while',
  { withinMs: DOWN_MS + SEEN_TO_MS, maxRepeats: 100, allowed: ['unavailable', 'timeout', 'overloaded'] },
  async (t, world) => {
    const postgres = await startFragilePostgres(t)
    world.databaseUrl = postgres.url
    const { a, b } = await world.startTwo()
    const { mediator, connections } = await world.load({ from: [a], to: [b] })
    await sleep(LOAD_MS / 3 + world.random.between(0, 500))
    world.ledger.touched(connections)
    await postgres.kill()
    await sleep(DOWN_MS)
    t.equal((await fetch(`${a.url}/ready`)).status, 503)
    t.equal((await fetch(`${a.url}/health`)).status, 200)
    await postgres.start()
    const probes = await Promise.all([a, b].map(({ ws }) => openClient(ws, newOutcomes())))
    const recoveredMs = Math.max(...(await Promise.all(probes.map((probe) => untilAdds(probe, 10_000)))))
    t.ok(recoveredMs < 2_000, `both take messages ${Math.round(recoveredMs)} ms after Postgres accepts`)
    await sleep(LOAD_MS / 3)
    for (const probe of probes) probe.socket.terminate()
    t.same(mediator.closes, [], 'live sockets stay open')
    world.measured(`${DOWN_MS / 1_000} s down, recovered in ${Math.round(recoveredMs)} ms`)
  },
)

scenario(
  'F6: a slow Postgres, and a locked table',
  { skip: onlyFull, withinMs: SLOW_MS + LOCKED_MS, maxRepeats: 1_000, allowed: ['timeout', 'unavailable', 'overloaded'] },
  async (t, world) => {
    const postgres = await startFragilePostgres(t)
    world.databaseUrl = postgres.url
    const proxy = await startProxy(postgres)
    t.teardown(() => proxy.close())
    const { a, b } = await world.startTwo({ DATABASE_URL: throughProxy(postgres.url, proxy) })
    const { mediator, connections } = await world.load({ from: [a], to: [b] })
    await sleep(LOAD_MS / 3)
    world.ledger.touched(connections)
    const before = memoryOf(a.pid)
    let watcher = watch(a)
    proxy.delay(() => world.random.between(200, 2_000))
    await sleep(SLOW_MS)
    proxy.heal()
    const slow = await watcher.end()
    await sleep(LOAD_MS / 3)

    watcher = watch(a)
    const locker = new pg.Client(postgres.url)
    await locker.connect()
    await locker.query('BEGIN; LOCK TABLE queued_messages IN ACCESS EXCLUSIVE MODE')
    await sleep(LOCKED_MS)
    await locker.query('COMMIT')
    await locker.end()
    const locked = await watcher.end()
    const probe = await openClient(a.ws, newOutcomes())
    const recoveredMs = await untilAdds(probe, 10_000)
    probe.socket.terminate()

    t.ok(recoveredMs < 2_000, `it serves ${Math.round(recoveredMs)} ms after the lock was released`)
    t.ok(slow.healthy && locked.healthy, '/health stays ok')
    t.ok(Math.max(slow.healthMs, locked.healthMs) < 1_000, '/health answers at once')
    t.ok(slow.unready > 0, '/ready says that the store is slow')
    t.ok(locked.unready > 0, '/ready says that the table is locked')
    t.same(mediator.closes, [], 'live sockets stay open')
    const grown = Math.round((Math.max(slow.peakBytes, locked.peakBytes) - before) / MIB)
    t.ok(grown < 100, `it took ${grown} MiB more`)
    world.measured(`memory +${grown} MiB, served ${Math.round(recoveredMs)} ms after the lock`)
  },
)

scenario(
  'F7: the answer to a commit is lost, and the call is repeated with the same idempotencyKey',
  { allowed: ['unavailable', 'timeout', 'overloaded'], atLeast: ROUNDS * AT_ONCE },
  async (t, world) => {
    const postgres = await startFragilePostgres(t)
    world.databaseUrl = postgres.url
    const proxy = await startProxy(postgres)
    t.teardown(() => proxy.close())
    const { a, b } = await world.startTwo({ DATABASE_URL: throughProxy(postgres.url, proxy) }, { DATABASE_URL: postgres.url })
    await world.load({ from: [b], to: [b] })
    const { ledger } = world
    const client = await openClient(a.ws, world.outcomes)
    let repeated = 0
    for (let round = 0; round < ROUNDS; round++) {
      const calls = Array.from({ length: AT_ONCE }, () => {
        const connectionId = randomUUID()
        ledger.waiting([connectionId])
        return { connectionId, recipientDids: [DID], payload: { text: ledger.adding(connectionId) }, idempotencyKey: randomUUID() }
      })
      proxy.loseAnswers()
      const failed = Promise.all(
        calls.map((call) =>
          client.call('addMessage', call).then(
            () => false,
            () => true,
          ),
        ),
      )
      const keys = calls.map(({ idempotencyKey }) => `'${idempotencyKey}'`).join()
      const count = async () =>
        Number((await onDatabase(postgres.url, `SELECT count(*) FROM queued_messages WHERE idempotency_key IN (${keys})`))[0]!.count)
      await settled(async () => (await count()) > 0, 1_000) // committed, and nobody told
      proxy.cut()
      proxy.heal()
      repeated += (await failed).filter(Boolean).length
      const ids = await Promise.all(calls.map((call) => untilAdded(client, call)))
      for (const { payload } of calls) ledger.added(payload.text)
      t.equal(await count(), AT_ONCE, 'one row for each key')
      const taken = await Promise.all(calls.map(({ connectionId }) => client.call('takeFromQueue', { connectionId })))
      t.same(
        taken.map(([{ id }]) => id),
        ids,
        'with the id of the answer',
      )
      for (const [i, { connectionId, payload }] of calls.entries()) {
        ledger.received(connectionId, payload.text, 'take')
        await client.call('removeMessages', { connectionId, messageIds: [ids[i]] })
        ledger.acked([payload.text])
      }
    }
    client.socket.terminate()
    t.ok(repeated >= ROUNDS, `${repeated} answers were lost`)
    world.measured(`${repeated} answers lost`)
  },
)

async function untilAdded(client: Client, call: object): Promise<string> {
  for (const deadline = performance.now() + 10_000; ;) {
    try {
      return await client.call('addMessage', call)
    } catch (error) {
      if (performance.now() > deadline) throw error
      await sleep(50)
    }
  }
}

scenario('F29: 50 adds at once, over two instances, into a queue with room for one', { allowed: ['quota_exceeded'] }, async (t, world) => {
  const { a, b } = await world.startTwo({ QUOTA_MESSAGES: String(QUOTA) })
  const { ledger, outcomes } = world
  const clients = await Promise.all([a, b].map(({ ws }) => openClient(ws, outcomes)))
  const queues = Array.from({ length: ROUNDS }, () => randomUUID())
  ledger.waiting(queues)
  let most = 0
  for (const connectionId of queues) {
    const addBy = async (client: Client, together = false) => {
      const text = ledger.adding(connectionId, together)
      try {
        await client.call('addMessage', { connectionId, recipientDids: [DID], payload: { text } })
        ledger.added(text)
      } catch {
        ledger.refused(text) // if it came all the same it were a ghost
      }
    }
    for (let n = 1; n < QUOTA; n++) await addBy(clients[n % 2]!)
    await Promise.all(Array.from({ length: 50 }, (_, n) => addBy(clients[n % 2]!, n > 0)))
    const [row] = await onDatabase(world.databaseUrl, `SELECT count(*)::int FROM queued_messages WHERE connection_id = '${connectionId}'`)
    const depth = row!.count as number
    t.ok(depth >= QUOTA, 'the place that was free is taken')
    most = Math.max(most, depth)
  }
  t.ok(most <= QUOTA + 1, `at most one place for each other instance beyond the quota: ${most} of ${QUOTA}`)
  await drain({ urls: [a.ws], connections: queues, ledger, outcomes })
  for (const { socket } of clients) socket.terminate()
  world.measured(`at most ${most} with a quota of ${QUOTA}`)
})
