import { spawn } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import pg from 'pg'
import t, { type Test } from 'tap'
import { startServer, type RunningServer } from '../helpers/process.js'
import { startProxy } from '../helpers/proxy.js'
import { startCluster, startRedis } from '../helpers/redis.js'
import { connect, message, testDatabase } from '../helpers/service.js'
import { createLedger, type Ledger } from './ledger.js'
import { startMediator, startSender, untilAllReceived, type Failures } from './world.js'

/*
 * Two instances, real processes on one Postgres, and what may happen to them (reliability.md). `npm run faults` runs them at
 * full length; in `npm test` the long outages are shortened.
 */
const FULL = process.env.FAULTS === 'full'
const BLACK_HOLE_MS = FULL ? 60_000 : 8_000
const LOAD_MS = FULL ? 10_000 : 3_000
const CONNECTIONS = 60
const PER_SECOND = 200

const withoutRedis = (process.env.SKIP_TESTS ?? '').split(',').includes('redis') && 'left out by SKIP_TESTS=redis'

type Teardown = { teardown(end: () => unknown): void }

/** Redis-less unless `settings` say otherwise. The second instance may have settings of its own. */
async function startTwo(t: Teardown, settings: Record<string, string> = {}, ofB: Record<string, string> = {}) {
  const DATABASE_URL = settings.DATABASE_URL ?? (await testDatabase(t))
  const start = async (own: Record<string, string>) => {
    const server = await startServer({ DATABASE_URL, ...settings, ...own })
    t.teardown(() => server.end('SIGKILL'))
    return server
  }
  const [a, b] = await Promise.all([start({}), start({ ...settings, ...ofB })])
  return { a, b, DATABASE_URL, start }
}

const newConnections = () => Array.from({ length: CONNECTIONS }, () => randomUUID())

/** Nothing lost, nothing that was not sent, nothing after its ack, in order; and the queue is empty. */
async function verify(t: Test, ledger: Ledger, DATABASE_URL: string, { maxRepeats, withinMs }: { maxRepeats: number; withinMs: number }) {
  const report = ledger.report()
  t.comment(JSON.stringify({ ...report, lost: report.lost.length, ghosts: report.ghosts.length, inversions: report.inversions.length }))
  t.ok(report.added > 100, 'there was a load')
  t.same(report.lost, [], 'A1 nothing is lost')
  t.same(report.ghosts, [], 'A2 no ghosts')
  t.same(report.resurrected, [], 'A3 nothing comes back after its ack')
  t.same(report.inversions, [], 'A4 in order')
  t.ok(report.repeats <= maxRepeats, `A5 ${report.repeats} repeats, at most ${maxRepeats} are explained by the fault`)
  t.ok(report.worstDelayMs <= withinMs, `A7 the slowest came after ${Math.round(report.worstDelayMs)} ms, ${withinMs} are allowed`)
  const client = new pg.Client(DATABASE_URL)
  await client.connect()
  for (const deadline = Date.now() + 5_000; ; await sleep(50)) {
    const { rows } = await client.query<{ waiting: number }>('SELECT count(*)::int AS waiting FROM queued_messages')
    // Adds whose answer was lost may have been stored for nobody's ledger; they are delivered and acked as well.
    if (rows[0]!.waiting === 0 || Date.now() > deadline) {
      t.equal(rows[0]!.waiting, 0, 'A6 the queue is empty')
      break
    }
  }
  await client.end()
}

/** Sender at one instance, mediator at the other. */
async function startLoad(t: Teardown, from: RunningServer[], to: RunningServer[]) {
  const ledger = createLedger()
  const connections = newConnections()
  const mediator = startMediator({ urls: to.map(({ ws }) => ws), connections, ledger })
  t.teardown(() => mediator.stop())
  await mediator.ready
  const sender = startSender({ urls: from.map(({ ws }) => ws), connections, ledger, perSecond: PER_SECOND })
  t.teardown(() => sender.stop())
  return { ledger, mediator, sender, connections }
}

/** A8: every call was answered, and with an error only where the fault explains it. */
function explained(t: Test, failures: Failures, allowed: string[]): void {
  const others = Object.keys(failures).filter((code) => !allowed.includes(code))
  t.same(others, [], `failed calls: ${JSON.stringify(failures)}`)
}

t.test('two instances, Postgres alone: everything crosses, in order, once', async (t) => {
  const { a, b, DATABASE_URL } = await startTwo(t)
  const { ledger, mediator, sender } = await startLoad(t, [a], [b])
  await sleep(LOAD_MS)
  await sender.stop()
  await untilAllReceived(ledger, 7_000)
  await verify(t, ledger, DATABASE_URL, { maxRepeats: 0, withinMs: 2_000 })
  explained(t, { ...sender.failures, ...mediator.failures }, [])
})

t.test('the displaced owner on another instance is told, and its late remove changes nothing (F17)', { skip: withoutRedis }, async (t) => {
  const redis = await startRedis()
  t.teardown(() => redis.kill())
  const { a, b } = await startTwo(t, { REDIS_URL: redis.url })
  const [atA, atB, other] = [await connect(a.ws, t), await connect(b.ws, t), await connect(a.ws, t)]
  for (let round = 0; round < 100; round++) {
    const connectionId = randomUUID()
    await atA.call('addLiveSession', { connectionId, sessionId: 'a' })
    const late = atB.call('addLiveSession', { connectionId, sessionId: 'b' }).then(() => atA.call('removeLiveSession', { connectionId }))
    t.equal(await late, false)
    t.equal(await other.call('getLiveSession', { connectionId }), true, 'true on both instances')
    await other.call('addMessage', message(connectionId, round))
    await atA.frame(({ method, params }) => method === 'liveSessionReplaced' && params.connectionId === connectionId)
    await atB.frame(({ method, params }) => method === 'messagesReceived' && params.connectionId === connectionId)
  }
  t.equal(atA.frames.filter(({ method }) => method === 'messagesReceived').length, 0, 'nothing went to the displaced ones')
})

t.test('kill -9 of the instance that holds the sessions (F1)', { skip: withoutRedis }, async (t) => {
  const redis = await startRedis()
  t.teardown(() => redis.kill())
  const { a, b, DATABASE_URL } = await startTwo(t, { REDIS_URL: redis.url })
  const { ledger, mediator, sender } = await startLoad(t, [a], [b, a])
  const abandoned = randomUUID()
  const forgotten = await connect(b.ws, t)
  forgotten.socket.on('error', () => {})
  await forgotten.call('addLiveSession', { connectionId: abandoned, sessionId: 'never returns' })
  await sleep(LOAD_MS / 2)
  const killed = performance.now()
  await b.end('SIGKILL')
  await sleep(LOAD_MS / 2)
  await sender.stop()
  await untilAllReceived(ledger, 7_000)
  // A repeat is what was delivered and not yet acked when the socket was lost: 20 ms of the load, and those in the kernel.
  await verify(t, ledger, DATABASE_URL, { maxRepeats: CONNECTIONS, withinMs: 5_000 })
  explained(t, mediator.failures, ['lost'])
  explained(t, sender.failures, [])
  const witness = await connect(a.ws, t)
  while ((await witness.call('getLiveSession', { connectionId: abandoned })) !== null) await sleep(200)
  const freedAfter = performance.now() - killed
  t.ok(freedAfter < 35_000, `the session of a wallet that did not return was freed after ${Math.round(freedAfter)} ms`)
})

t.test('a rolling restart loses nothing and closes the sockets with 1012 (F3)', { skip: withoutRedis }, async (t) => {
  const redis = await startRedis()
  t.teardown(() => redis.kill())
  const { a, b, DATABASE_URL, start } = await startTwo(t, { REDIS_URL: redis.url })
  const { ledger, mediator, sender } = await startLoad(t, [a, b], [b, a])
  await sleep(LOAD_MS / 3)
  t.equal(await b.end('SIGTERM'), 0)
  t.same(mediator.closes, [1012])
  const c = await start({ PORT: new URL(b.url).port })
  await sleep(LOAD_MS / 3)
  t.equal(await a.end('SIGTERM'), 0)
  t.same(mediator.closes, [1012, 1012])
  await sleep(LOAD_MS / 3)
  await sender.stop()
  await untilAllReceived(ledger, 7_000)
  await verify(t, ledger, DATABASE_URL, { maxRepeats: 2 * CONNECTIONS, withinMs: 5_000 })
  explained(t, { ...sender.failures, ...mediator.failures }, ['lost', 'shutting_down'])
  t.notOk(c.log.some(({ level }) => level >= 50))
})

t.test('kill -9 of Redis and an empty restart (F8)', { skip: withoutRedis }, async (t) => {
  const redis = await startRedis()
  const { a, b, DATABASE_URL } = await startTwo(t, { REDIS_URL: redis.url })
  const { ledger, mediator, sender } = await startLoad(t, [a], [b])
  await sleep(LOAD_MS / 3)
  await redis.kill()
  await sleep(LOAD_MS)
  t.same(await (await fetch(`${b.url}/ready`)).json(), { status: 'degraded', checks: { store: true, pubsub: false } })
  const again = await startRedis({ port: redis.port })
  t.teardown(() => again.kill())
  const restarted = performance.now()
  while ((await (await fetch(`${b.url}/ready`)).text()).includes('degraded')) await sleep(50)
  t.ok(performance.now() - restarted < 10_000, 'it recovers by itself')
  await sleep(LOAD_MS / 3)
  await sender.stop()
  await untilAllReceived(ledger, 7_000)
  await verify(t, ledger, DATABASE_URL, { maxRepeats: 0, withinMs: 7_000 })
  explained(t, { ...sender.failures, ...mediator.failures }, [])
  for (const server of [a, b]) t.ok(server.log.filter(({ msg }) => msg.includes('bus')).length <= 3, 'one log line for each change')
})

t.test('a black hole between one instance and Redis (F9)', { skip: withoutRedis }, async (t) => {
  const redis = await startRedis()
  t.teardown(() => redis.kill())
  const proxy = await startProxy(redis)
  t.teardown(() => proxy.close())
  const { a, b, DATABASE_URL } = await startTwo(t, { REDIS_URL: redis.url }, { REDIS_URL: `redis://127.0.0.1:${proxy.port}` })
  const crossing = await startLoad(t, [a], [b])
  const back = await startLoad(t, [b], [a]) // what is published into the black hole
  await sleep(LOAD_MS / 3)
  proxy.blackHole()
  await sleep(BLACK_HOLE_MS)
  proxy.heal()
  await sleep(LOAD_MS / 3)
  for (const { sender } of [crossing, back]) await sender.stop()
  for (const { ledger, mediator, sender } of [crossing, back]) {
    await untilAllReceived(ledger, 7_000)
    explained(t, { ...sender.failures, ...mediator.failures }, [])
    await verify(t, ledger, DATABASE_URL, { maxRepeats: 0, withinMs: 7_000 })
  }
})

t.test('a master of the Redis Cluster is killed (F11)', { skip: withoutRedis }, async (t) => {
  const cluster = await startCluster({ replicas: true })
  t.teardown(() => cluster.stop())
  const { a, b, DATABASE_URL } = await startTwo(t, { REDIS_NODES: cluster.list })
  const { ledger, mediator, sender } = await startLoad(t, [a], [b])
  await sleep(LOAD_MS / 3)
  await cluster.nodes[0]!.kill()
  await sleep(FULL ? 15_000 : 6_000)
  await sender.stop()
  await untilAllReceived(ledger, 7_000)
  await verify(t, ledger, DATABASE_URL, { maxRepeats: 0, withinMs: 7_000 })
  explained(t, { ...sender.failures, ...mediator.failures }, [])
  const probe = await connect(a.ws, t)
  const owner = await connect(b.ws, t)
  const delays: number[] = []
  for (let n = 0; n < 30; n++) {
    const connectionId = randomUUID()
    await owner.call('addLiveSession', { connectionId, sessionId: 's' })
    const started = performance.now()
    await probe.call('addMessage', message(connectionId))
    await owner.frame(({ method, params }) => method === 'messagesReceived' && params.connectionId === connectionId)
    delays.push(performance.now() - started)
  }
  t.ok(Math.max(...delays) < 1_000, `channels of the dead master's slots are heard again: ${Math.round(Math.max(...delays))} ms at worst`)
})

t.test('a phantom: the owner is stopped without a word, the wallet returns elsewhere (F13)', { skip: withoutRedis }, async (t) => {
  const redis = await startRedis()
  t.teardown(() => redis.kill())
  const { a, b } = await startTwo(t, { REDIS_URL: redis.url, PING_INTERVAL_MS: '1000', PONG_TIMEOUT_MS: '1000' })
  const connectionId = randomUUID()
  const phantom = spawn(process.execPath, [
    '-e',
    `const socket = new (require('ws'))('${b.ws}')
     socket.on('open', () => socket.send(JSON.stringify({ jsonrpc: '2.0', id: 1, method: 'addLiveSession', params: { connectionId: '${connectionId}', sessionId: 'phantom' } })))
     socket.on('message', (data) => console.log(String(data)))`,
  ])
  t.teardown(() => phantom.kill('SIGKILL'))
  await new Promise((resolve) => phantom.stdout.once('data', resolve))
  phantom.kill('SIGSTOP')
  const sender = await connect(a.ws, t)
  for (let n = 1; n <= 5; n++) await sender.call('addMessage', message(connectionId, n))
  const wallet = await connect(a.ws, t)
  await wallet.call('addLiveSession', { connectionId, sessionId: 'real' })
  const started = performance.now()
  t.equal(await wallet.call('getAvailableMessageCount', { connectionId }), 5)
  t.equal((await wallet.call('takeFromQueue', { connectionId })).length, 5)
  t.ok(performance.now() - started < 1_000, 'everything un-acked, within a second')

  const another = randomUUID()
  const left = await connect(b.ws, t)
  left.socket.on('error', () => {})
  await left.call('addLiveSession', { connectionId: another, sessionId: 's' })
  left.socket.pause()
  while ((await sender.call('getLiveSession', { connectionId: another })) !== null) await sleep(100)
  t.pass('a phantom whose wallet does not return is reaped')
})
