import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { memoryOf } from '../../bench/measure.js'
import { ACCEPTED, startFcm, UNREGISTERED } from '../helpers/fcm.js'
import { onDatabase } from '../helpers/postgres.js'
import { startServer } from '../helpers/process.js'
import { connect, message, newConnectionId, startService, testDatabase } from '../helpers/service.js'

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
  const imports = ['./test/helpers/google-redirect.ts']
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

t.test('thousands of dead tokens: each is tried once and dropped, and the memory stays (F23)', async (t) => {
  const DATABASE_URL = await testDatabase(t)
  const settings = { ...fcm.processSettings, PUSH_WINDOW_MS: String(WINDOW_MS), DATABASE_URL }
  const server = await startServer(settings, { imports: ['./test/helpers/google-redirect.ts'] })
  t.teardown(() => server.end('SIGKILL'))
  const client = await connect(server.ws, t)
  const dead = Array.from({ length: DEAD_TOKENS }, () => ({ token: newToken(), connectionId: newConnectionId() }))
  for (const { token } of dead) fcm.answer(token, () => UNREGISTERED)
  const addAll = async () => {
    for (let n = 0; n < dead.length; n += 50)
      await Promise.all(dead.slice(n, n + 50).map(({ token, connectionId }) => client.call('addMessage', withToken(connectionId, token))))
  }
  const states = async () => JSON.stringify(await onDatabase(DATABASE_URL, 'SELECT state, count(*)::int FROM push_outbox GROUP BY state'))
  await addAll()
  while ((await states()) !== JSON.stringify([{ state: 'dead', count: DEAD_TOKENS }])) await sleep(100)
  const before = memoryOf(server.pid)
  await addAll()
  await untilQuiet()
  const given = new Set(dead.map(({ token }) => token))
  t.equal(fcm.sent.filter(({ token }) => given.has(token)).length, DEAD_TOKENS, 'once each')
  t.equal(await states(), JSON.stringify([{ state: 'dead', count: DEAD_TOKENS }]))
  t.same(await onDatabase(DATABASE_URL, 'SELECT count(*)::int FROM push_tokens WHERE token IS NOT NULL'), [{ count: 0 }], 'dropped')
  const grown = memoryOf(server.pid) - before
  t.ok(grown < 64 * MIB, `giving all of them again took ${Math.round(grown / MIB)} MiB`)
})
