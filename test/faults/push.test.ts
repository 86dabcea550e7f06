import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { memoryOf } from '../../bench/measure.js'
import { ACCEPTED, refusal, startFcm, UNREGISTERED, type Answer } from '../helpers/fcm.js'
import { onDatabase } from '../helpers/postgres.js'
import { startServer } from '../helpers/process.js'
import { connect, DID, message, newConnectionId, startService, testDatabase } from '../helpers/service.js'
import { openClient, type Client } from './client.js'
import { scenario, type World } from './scenario.js'
import { drain } from './load.js'

/* Pushes through crashes and in bulk. In `npm test` the bulk is smaller than in `npm run faults`. */

const DEAD_TOKENS = process.env.FAULTS === 'full' ? 10_000 : 1_500
const MIB = 1024 * 1024
const WINDOW_MS = 600
const fcm = await startFcm(t)
const quick = { PUSH_WINDOW_MS: String(WINDOW_MS), PUSH_TIMEOUT_MS: '1000', PUSH_RETRY_MS: '100' }

let tokens = 0
const newToken = () => `registration-token-${++tokens}`
const withToken = (connectionId: string, token: string) => message(connectionId, 0, { pushNotificationToken: { type: 'fcm', token } })
const untilQuiet = () => sleep(WINDOW_MS + 1_700)

t.test('a push owed by an instance that was killed while it sent is sent by the next one', async (t) => {
  const [token, connectionId] = [newToken(), newConnectionId()]
  const settings = { ...fcm.processSettings, ...quick, DATABASE_URL: await testDatabase(t), LOG_LEVEL: 'info' }
  fcm.answer(token, (nth) => (nth === 1 ? 'hang' : ACCEPTED))
  const a = await startServer(settings, { imports })
  const socket = await connect(a.ws, t)
  socket.socket.on('error', () => {})
  await socket.call('addMessage', withToken(connectionId, token))
  await fcm.came(token)
  await a.end('SIGKILL')
  const b = await startServer(settings, { imports })
  t.teardown(() => b.end('SIGKILL'))
  await fcm.came(token, 2)
  await untilQuiet()
  t.equal(fcm.to(token).length, 2)
})

t.test('a push owed by an instance that was killed before it sent, and by one whose session it held, is sent by another', async (t) => {
  const [token, live, connectionId, liveId] = [newToken(), newToken(), newConnectionId(), newConnectionId()]
  const DATABASE_URL = await testDatabase(t)
  // Its pool of sendings is full of hanging ones, so the push stays owed.
  const hanging = Array.from({ length: 64 }, newToken)
  for (const other of hanging) fcm.answer(other, (nth) => (nth === 1 ? 'hang' : ACCEPTED))
  const a = await startServer(
    { ...fcm.processSettings, ...quick, PUSH_TIMEOUT_MS: '20000', DATABASE_URL },
    { imports: ['./test/helpers/google-redirect.ts'] },
  )
  const socket = await connect(a.ws, t)
  socket.socket.on('error', () => {})
  await Promise.all(hanging.map((other) => socket.call('addMessage', withToken(newConnectionId(), other))))
  await Promise.all(hanging.map((other) => fcm.came(other)))
  await socket.call('addMessage', withToken(connectionId, token))
  await socket.call('setPushToken', { connectionId: liveId, type: 'fcm', token: live })
  await socket.call('addLiveSession', { connectionId: liveId, sessionId: 's' })
  await socket.call('addMessage', message(liveId))
  await a.end('SIGKILL')
  t.equal(fcm.to(token).length, 0)
  await startService(t, { DATABASE_URL, ...fcm.settings, ...quick })
  await fcm.came(token)
  t.equal(fcm.to(live).length, 0, 'its lease still runs')
  await onDatabase(DATABASE_URL, 'UPDATE instances SET lease_until = now() WHERE lease_until = (SELECT min(lease_until) FROM instances)')
  await fcm.came(live)
})

/** Adds that the ledger knows, with a token each. */
async function addWithToken({ ledger }: World, client: Client, connectionId: string, pushNotificationToken: object): Promise<number> {
  const text = ledger.adding(connectionId)
  const started = performance.now()
  await client.call('addMessage', {
    connectionId,
    recipientDids: [DID],
    payload: { text },
    pushNotificationToken: { type: 'fcm', ...pushNotificationToken },
  })
  ledger.added(text)
  return performance.now() - started
}

const imports = ['./test/helpers/google-redirect.ts']

scenario('F23: thousands of dead tokens', {}, async (t, world) => {
  const server = await world.start({ ...fcm.processSettings, PUSH_WINDOW_MS: String(WINDOW_MS) }, { imports })
  const client = await openClient(server.ws, world.outcomes)
  const dead = Array.from({ length: DEAD_TOKENS }, () => ({ token: newToken(), connectionId: newConnectionId() }))
  const connections = dead.map(({ connectionId }) => connectionId)
  world.ledger.waiting(connections)
  for (const { token } of dead) fcm.answer(token, () => UNREGISTERED)
  const addAll = () => Promise.all(dead.map(({ token, connectionId }) => addWithToken(world, client, connectionId, { token })))
  const states = async () =>
    JSON.stringify(await onDatabase(world.databaseUrl, 'SELECT state, count(*)::int FROM push_outbox GROUP BY state'))
  await addAll()
  while ((await states()) !== JSON.stringify([{ state: 'dead', count: DEAD_TOKENS }])) await sleep(100)
  const before = memoryOf(server.pid)
  await addAll()
  await untilQuiet()
  const given = new Set(dead.map(({ token }) => token))
  t.equal(fcm.sent.filter(({ token }) => given.has(token)).length, DEAD_TOKENS, 'each is tried once')
  t.equal(await states(), JSON.stringify([{ state: 'dead', count: DEAD_TOKENS }]))
  t.same(await onDatabase(world.databaseUrl, 'SELECT count(*)::int FROM push_tokens WHERE token IS NOT NULL'), [{ count: 0 }], 'dropped')
  const grown = memoryOf(server.pid) - before
  t.ok(grown < 64 * MIB, `giving all of them again took ${Math.round(grown / MIB)} MiB`)
  await drain({ urls: [server.ws], connections, ledger: world.ledger, outcomes: world.outcomes })
  client.socket.terminate()
  world.measured(`${DEAD_TOKENS} tokens tried once each`)
})

scenario('F24: FCM answers 429 and 503 with Retry-After, hangs, and refuses our credentials', { atLeast: 50 }, async (t, world) => {
  const server = await world.start({ ...fcm.processSettings, ...quick }, { imports })
  const client = await openClient(server.ws, world.outcomes)
  const RETRY_AFTER_S = 2
  const faults: { project: string; answer: Answer; atLeastMs: number }[] = [
    {
      project: 'p0',
      answer: refusal(429, 'RESOURCE_EXHAUSTED', undefined, {}, { 'retry-after': String(RETRY_AFTER_S) }),
      atLeastMs: RETRY_AFTER_S * 1_000,
    },
    {
      project: 'p1',
      answer: refusal(503, 'UNAVAILABLE', undefined, {}, { 'retry-after': String(RETRY_AFTER_S) }),
      atLeastMs: RETRY_AFTER_S * 1_000,
    },
    { project: 'p2', answer: 'hang', atLeastMs: 500 }, // its time-out of a second begins before it comes: by 0.1 s and more on a busy machine
    { project: 'p3', answer: refusal(401, 'UNAUTHENTICATED'), atLeastMs: 100 },
  ]
  const phones = faults.map((fault) => ({ ...fault, token: newToken(), connectionId: newConnectionId() }))
  const crowd = Array.from({ length: 80 }, () => ({ token: newToken(), connectionId: newConnectionId() }))
  const connections = [...phones, ...crowd].map(({ connectionId }) => connectionId)
  world.ledger.waiting(connections)
  for (const { token, answer } of phones) fcm.answer(token, (nth) => (nth < 3 ? answer : ACCEPTED))
  let isDown = true
  for (const { token } of crowd) fcm.answer(token, () => (isDown ? refusal(503, 'UNAVAILABLE') : ACCEPTED))
  const times: number[] = []
  for (const { project, token, connectionId } of phones) times.push(await addWithToken(world, client, connectionId, { project, token }))
  for (const { token, connectionId } of crowd) times.push(await addWithToken(world, client, connectionId, { token, project: 'p4' }))
  await Promise.all(phones.map(({ token }) => fcm.came(token, 3)))
  const askedWhileDown = fcm.sent.filter(({ token }) => crowd.some((phone) => phone.token === token)).length
  isDown = false
  await Promise.all(crowd.map(({ token }) => fcm.came(token)))
  await untilQuiet()
  for (const { project, token, atLeastMs } of phones) {
    const [first, second, third, ...others] = fcm.to(token)
    t.ok(second!.at - first!.at >= atLeastMs - 5 && third!.at - second!.at >= atLeastMs - 5, `${project}: waited as long as it was told`)
    t.same(others, [], `${project}: three tries, the third was taken`)
  }
  t.ok(askedWhileDown < 200, `a breaker: ${askedWhileDown} attempts for ${crowd.length} phones while FCM was down`)
  const slowest = Math.max(...times)
  t.ok(slowest < 500, `no add waits for FCM, the slowest took ${Math.round(slowest)} ms`)
  await drain({ urls: [server.ws], connections, ledger: world.ledger, outcomes: world.outcomes })
  client.socket.terminate()
  world.measured(`${askedWhileDown} attempts for ${crowd.length} phones while down, slowest add ${Math.round(slowest)} ms`)
})
