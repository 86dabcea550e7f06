import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import pg from 'pg'
import t from 'tap'
import { createAdministrator } from '../src/administrator.js'
import type { Administration } from '../src/ports.js'
import { comparable, example } from './helpers/example.js'
import { bearer, secret } from './helpers/keys.js'
import { onDatabase } from './helpers/postgres.js'
import { startServer } from './helpers/process.js'
import { message, newConnectionId, startService, testDatabase } from './helpers/service.js'

t.test('the example of docs/administration.md prints what the document says', async (t) => {
  const service = await startService(t)
  const { script, expected } = example('docs/administration.md', 'administration')
  const { stdout } = await promisify(execFile)('bash', ['-c', script.replaceAll('127.0.0.1:3000', service.url.replace('http://', ''))])
  t.same(comparable(stdout), comparable(expected))
})

t.test('a purge destroys nothing unless it is told so in so many words', async (t) => {
  const service = await startService(t)
  const client = await service.connect()
  const connectionId = newConnectionId()
  for (let n = 0; n < 3; n++) await client.call('addMessage', message(connectionId, n))
  const url = `/v1/admin/connections/${connectionId}/purge`
  const bytes = Buffer.byteLength(JSON.stringify(message(connectionId).payload))
  for (const body of [undefined, {}, { dryRun: true }, { dryrun: false }, { olderThanSeconds: 0 }])
    t.same((await service.rest('POST', url, body)).body, { messages: 3, bytes: 3 * bytes, dryRun: true, more: false })
  for (const dryRun of ['false', 0, null]) t.equal((await service.rest('POST', url, { dryRun })).status, 400, JSON.stringify(dryRun))
  t.match((await service.rest('POST', url, { olderThanSeconds: -1 })).body, { error: { data: { field: 'olderThanSeconds', limit: 0 } } })
  t.equal(await client.call('getAvailableMessageCount', { connectionId }), 3)
  t.same((await service.rest('POST', url, { dryRun: false, olderThanSeconds: 60 })).body, {
    messages: 0,
    bytes: 0,
    dryRun: false,
    more: false,
  })
  t.same((await service.rest('POST', url, { dryRun: false })).body, { messages: 3, bytes: 3 * bytes, dryRun: false, more: false })
  t.equal(await client.call('getAvailableMessageCount', { connectionId }), 0)
})

t.test('each purge and each ended session is one line in the log: who, where, how many', async (t) => {
  const server = await startServer({
    DATABASE_URL: await testDatabase(t),
    API_KEYS: `the-operator:mediator+admin:${secret('operator')}`,
  })
  t.teardown(() => server.end('SIGTERM'))
  const ask = async (method: string, path: string, body?: object) => {
    const headers = { ...bearer('operator'), ...(body && { 'content-type': 'application/json' }) }
    const response = await fetch(`${server.url}/v1${path}`, { method, headers, ...(body && { body: JSON.stringify(body) }) })
    t.equal(response.status, 200, path)
    return await response.json()
  }
  const connectionId = newConnectionId()
  const id = await ask('POST', `/connections/${connectionId}/messages`, message(connectionId))
  await ask('PUT', `/connections/${connectionId}/live-session`, { sessionId: 's' })
  const before = server.log.length
  const purge = `/admin/connections/${connectionId}/purge`
  await ask('POST', purge, {})
  await ask('POST', purge, { dryRun: false, messageIds: [id, '1-unknown'], olderThanSeconds: 0 })
  await ask('DELETE', `/admin/connections/${connectionId}/live-session`)
  await server.end('SIGTERM')
  const lines = server.log.slice(before).filter(({ by }) => by !== undefined)
  t.match(lines, [
    {
      level: 30,
      by: 'key the-operator',
      connectionId,
      messages: 1,
      dryRun: true,
      msg: 'messages were counted for a purge, none was destroyed',
    },
    {
      level: 40,
      by: 'key the-operator',
      connectionId,
      messages: 1,
      dryRun: false,
      messageIds: 2,
      olderThanSeconds: 0,
      msg: 'messages were purged',
    },
    { level: 30, by: 'key the-operator', connectionId, ended: true, msg: 'the administration ended a live session' },
  ])
  t.equal(lines.length, 3)
  t.notMatch(JSON.stringify(lines), /ciphertext|did:|-unknown/)
})

t.test('a purge that takes too long stops and says so; one that breaks says how much it destroyed', async (t) => {
  const lines: object[] = []
  const keep = (level: string) => (facts: object, text: string) => void lines.push({ level, text, ...facts })
  const log = { debug: keep('debug'), info: keep('info'), warn: keep('warn'), error: keep('error') }
  let clock = 0
  let left = 10
  let isDown = false
  const administration = {
    measure: async () => ({ messages: left, bytes: left, upTo: '10' }),
    async purge() {
      clock += 1_000
      if (isDown) throw new Error('the database is down')
      return left-- > 0 ? { ids: [`${left}-a`], bytes: 1 } : { ids: [], bytes: 0 }
    },
  } as unknown as Administration
  const removed: string[] = []
  const { purgeMessages } = createAdministrator({
    ...{ administration, log, now: () => clock, outbox: { getToken: async () => undefined } },
    liveSessions: { remove: async () => false, removed: (_, ids) => void removed.push(...ids) },
  })
  const ask = () => purgeMessages({ connectionId: 'c', dryRun: false }, { client: 'key k' })
  t.same(await ask(), { messages: 4, bytes: 4, dryRun: false, more: true })
  t.same(removed, ['9-a', '8-a', '7-a', '6-a'], 'the windows of live sessions have room again')
  t.same(await ask(), { messages: 4, bytes: 4, dryRun: false, more: true })
  t.same(await ask(), { messages: 2, bytes: 2, dryRun: false, more: false })
  left = 10
  setImmediate(() => (isDown = true))
  const slow = administration.purge
  administration.purge = async (selection) => {
    if (left === 8) await new Promise((resolve) => setImmediate(resolve))
    return slow(selection)
  }
  await t.rejects(ask(), /down/)
  t.match(lines.at(-1), { level: 'warn', text: 'a purge failed, after this much of it', by: 'key k', messages: 2, err: Error })
  t.equal(lines.length, 4)
})

t.test('the administration ends a session whoever owns it, and what is in flight is free', async (t) => {
  const a = await startService(t)
  const other = await startService(t, { DATABASE_URL: a.databaseUrl })
  const owner = await other.connect()
  const connectionId = newConnectionId()
  await owner.call('addLiveSession', { connectionId, sessionId: 'mine' })
  await owner.call('addMessage', message(connectionId))
  await owner.received(1)
  t.equal(await owner.call('getAvailableMessageCount', { connectionId }), 0)
  const url = `/v1/admin/connections/${connectionId}`
  t.match((await a.rest('GET', url)).body, { liveSession: { sessionId: 'mine', instanceId: other.inside.sessions.instanceId } })
  t.equal((await a.rest('DELETE', `${url}/live-session?sessionId=another`)).body, false)
  t.equal((await a.rest('DELETE', `${url}/live-session?sessionId=mine`)).body, true)
  t.equal((await a.rest('DELETE', `${url}/live-session`)).body, false, 'there is none any more')
  t.equal(await owner.call('getLiveSession', { connectionId }), null)
  t.equal(await owner.call('getAvailableMessageCount', { connectionId }), 1)
  t.equal((await a.rest('GET', url)).body.liveSession, undefined)
  t.equal(await owner.call('addLiveSession', { connectionId, sessionId: 'again' }), true)
})

t.test('a purge makes room in the window of the session, so that what waits is delivered', async (t) => {
  const service = await startService(t)
  const owner = await service.connect()
  const connectionId = newConnectionId()
  await owner.call('addLiveSession', { connectionId, sessionId: 'mine' })
  await Promise.all(Array.from({ length: 300 }, (_, n) => owner.call('addMessage', message(connectionId, n))))
  const delivered = await owner.received(256)
  const messageIds = delivered.slice(0, 100).map(({ id }) => id)
  await service.rest('POST', `/v1/admin/connections/${connectionId}/purge`, { dryRun: false, messageIds })
  t.equal((await owner.received(300)).length, 300)
})

t.test('a list that reads everything holds up no call, and a third at a time is refused', async (t) => {
  const service = await startService(t, { DATABASE_POOL_SIZE: '2' })
  const client = await service.connect()
  const connectionId = newConnectionId()
  await client.call('addMessage', message(connectionId))
  const locker = new pg.Client(service.databaseUrl)
  await locker.connect()
  t.teardown(() => locker.end())
  await locker.query('BEGIN; LOCK TABLE instances IN ACCESS EXCLUSIVE MODE') // which lists read at their end
  const lists = [service.rest('GET', '/v1/admin/connections'), service.rest('GET', '/v1/admin/connections?by=age')]
  const blocked = `SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database() AND query LIKE '%"live_sessions"%'`
  while ((await onDatabase(service.databaseUrl, blocked)).length < 2);
  t.match(await service.rest('GET', '/v1/admin/parked-messages'), { status: 503, body: { error: { data: { code: 'overloaded' } } } })
  await client.call('addMessage', message(connectionId))
  await locker.query('ROLLBACK')
  for (const { status, body } of await Promise.all(lists)) {
    t.equal(status, 200)
    t.match(body.connections, [{ connectionId, messages: 1 }])
  }
  t.equal((await service.rest('GET', '/v1/admin/parked-messages')).status, 200)
})
