import { once } from 'node:events'
import tcp from 'node:net'
import { setImmediate as nextTurn, setTimeout as sleep } from 'node:timers/promises'
import pg from 'pg'
import t, { type Test } from 'tap'
import { createInProcessPubSub } from '../plugins/pubsub/in-process.js'
import { createPostgresSessions } from '../plugins/storage/postgres-sessions.js'
import { createQuery } from '../plugins/storage/query.js'
import { CallError } from '../src/errors.js'
import { createLiveSessions } from '../src/live-sessions.js'
import type { Added, MessageStore, PubSub, SessionDirectory } from '../src/ports.js'
import { promised } from '../src/told.js'
import { jsonBytes } from './helpers/json.js'
import { silent } from './helpers/postgres.js'
import { DID, connect, message, newConnectionId, startService, type TestSocket } from './helpers/service.js'
import { byPromise, byTold, type StoreByPromise } from './helpers/store.js'

const service = await startService(t)
const open = (client: TestSocket, connectionId: string, sessionId = 's') => client.call('addLiveSession', { connectionId, sessionId })
const range = (from: number, to: number) => Array.from({ length: to - from + 1 }, (_, i) => from + i)
const texts = (messages: { encryptedMessage: { ciphertext: string } }[]) => messages.map((m) => m.encryptedMessage.ciphertext)

t.test('what arrives during a live session is delivered to its socket, after the commit and in order', async (t) => {
  const [sender, owner] = [await service.connect(), await service.connect()]
  const connectionId = newConnectionId()
  t.equal(await open(owner, connectionId), true)
  const ids = await Promise.all(range(1, 50).map((n) => sender.call('addMessage', message(connectionId, n))))
  const messages = await owner.received(50)
  t.same(
    messages.map(({ id }) => id),
    ids,
  )
  t.same(
    messages.map((m) => m.connectionId),
    range(1, 50).map(() => connectionId),
  )
  const frame = await owner.frame(({ method }) => method === 'messagesReceived')
  t.notOk('id' in frame, 'a notification has no id')
  t.equal(frame.params.id, '')
  t.match(messages[0]!.receivedAt, /^\d{4}-.*Z$/)
  t.equal(await sender.call('getAvailableMessageCount', { connectionId }), 0, 'pushed messages are hidden from the count')
  await owner.call('removeMessages', { connectionId, messageIds: ids })
  t.same(await owner.call('takeFromQueue', { connectionId }), [])
})

t.test('the backlog is not pushed: the client asks for it', async (t) => {
  const owner = await service.connect()
  const connectionId = newConnectionId()
  await owner.call('addMessage', message(connectionId, 1))
  await open(owner, connectionId)
  await owner.call('addMessage', message(connectionId, 2))
  t.same(texts(await owner.received(1)), ['message 2'])
  t.equal(await owner.call('getAvailableMessageCount', { connectionId }), 1)
  t.same(texts(await owner.call('takeFromQueue', { connectionId, limit: 1 })), ['message 1'])
})

t.test('a message added by the owner itself on the same socket is delivered to it', async (t) => {
  const owner = await service.connect()
  const connectionId = newConnectionId()
  await open(owner, connectionId)
  const id = await owner.call('addMessage', message(connectionId))
  t.equal((await owner.received(1))[0]!.id, id)
})

t.test('the newest session wins, and the displaced owner is told', async (t) => {
  const [a, b] = [await service.connect(), await service.connect()]
  const connectionId = newConnectionId()
  await open(a, connectionId, 'at a')
  await open(b, connectionId, 'at b')
  const told = await a.frame(({ method }) => method === 'liveSessionReplaced')
  t.same(told.params, { connectionId, sessionId: 'at a' })
  await b.call('addMessage', message(connectionId))
  await b.received(1)
  t.equal(a.frames.filter(({ method }) => method === 'messagesReceived').length, 0)
})

t.test('the late remove of a displaced owner answers false and changes nothing, until it adds again', async (t) => {
  const [a, b] = [await service.connect(), await service.connect()]
  const connectionId = newConnectionId()
  await open(a, connectionId)
  await open(b, connectionId)
  t.equal(await a.call('removeLiveSession', { connectionId }), false)
  t.equal(await a.call('getLiveSession', { connectionId }), true)
  await a.call('addMessage', message(connectionId))
  await b.received(1)
  await open(a, connectionId)
  t.equal(await a.call('removeLiveSession', { connectionId }), true)
  t.equal(await a.call('getLiveSession', { connectionId }), null)
  t.equal(await b.call('removeLiveSession', { connectionId }), false)
})

t.test('any other socket may end a session; a sessionId guards it', async (t) => {
  const [owner, stranger] = [await service.connect(), await service.connect()]
  const connectionId = newConnectionId()
  t.equal(await stranger.call('removeLiveSession', { connectionId }), false)
  await open(owner, connectionId, 'mine')
  t.equal(await stranger.call('removeLiveSession', { connectionId, sessionId: 'another' }), false)
  t.equal(await owner.call('getLiveSession', { connectionId }), true)
  t.equal(await stranger.call('removeLiveSession', { connectionId, sessionId: 'mine' }), true)
  await stranger.call('addMessage', message(connectionId))
  t.equal(await stranger.call('getAvailableMessageCount', { connectionId }), 1)
  t.equal(owner.frames.filter(({ method }) => method === 'messagesReceived').length, 0)
})

t.test('remove, add and count sent back to back without awaiting take effect in that order', async (t) => {
  for (let round = 0; round < 20; round++) {
    const client = await service.connect()
    const connectionId = newConnectionId()
    await open(client, connectionId, 'old')
    await client.call('addMessage', message(connectionId))
    await client.received(1)
    const answers = await Promise.all([
      client.call('removeLiveSession', { connectionId }),
      client.call('addLiveSession', { connectionId, sessionId: 'new' }),
      client.call('getAvailableMessageCount', { connectionId }),
    ])
    t.same(answers, [true, true, 1])
    await client.close()
  }
})

t.test('adds and a removeAll of one socket take effect in the order of their arrival', async (t) => {
  const client = await service.connect()
  const connectionId = newConnectionId()
  const calls = range(1, 40).map((n) =>
    n % 10 === 0
      ? client.call('removeAllMessages', { connectionId, recipientDid: DID })
      : client.call('addMessage', message(connectionId, n)),
  )
  calls.push(client.call('addMessage', message(connectionId, 41)))
  const count = client.call('getAvailableMessageCount', { connectionId })
  await Promise.all(calls)
  t.equal(await count, 1)
  t.same(texts(await client.call('takeFromQueue', { connectionId })), ['message 41'])
})

t.test('a closed socket ends all its sessions at once and releases what was in flight', async (t) => {
  const [owner, other] = [await service.connect(), await service.connect()]
  const connections = range(1, 5).map(newConnectionId)
  for (const connectionId of connections) {
    await open(owner, connectionId)
    await other.call('addMessage', message(connectionId))
  }
  await owner.received(5)
  owner.socket.terminate()
  for (const connectionId of connections) {
    while ((await other.call('getLiveSession', { connectionId })) !== null);
    t.equal(await other.call('getAvailableMessageCount', { connectionId }), 1)
  }
})

t.test('a returning wallet gets everything un-acked by taking it', async (t) => {
  const [owner, sender] = [await service.connect(), await service.connect()]
  const connectionId = newConnectionId()
  await open(owner, connectionId)
  for (const n of range(1, 4)) await sender.call('addMessage', message(connectionId, n))
  const [first] = await owner.received(4)
  await owner.call('removeMessages', { connectionId, messageIds: [first!.id] })
  owner.socket.terminate()
  const back = await service.connect()
  await open(back, connectionId)
  t.equal(await back.call('getAvailableMessageCount', { connectionId }), 3)
  t.same(texts(await back.call('takeFromQueue', { connectionId })), ['message 2', 'message 3', 'message 4'])
})

t.test('at most 256 messages are un-acked in the window; removals let the rest come', async (t) => {
  const [owner, sender] = [await service.connect(), await service.connect()]
  const connectionId = newConnectionId()
  await open(owner, connectionId)
  await Promise.all(range(1, 300).map((n) => sender.call('addMessage', message(connectionId, n))))
  const first = await owner.received(256)
  t.equal(first.length, 256)
  t.equal(await sender.call('getAvailableMessageCount', { connectionId }), 44)
  await sender.call('removeMessages', { connectionId, messageIds: first.slice(0, 10).map(({ id }) => id) })
  t.equal((await owner.received(266)).length, 266)
  await owner.call('removeMessages', { connectionId, messageIds: first.map(({ id }) => id) })
  t.same(
    texts(await owner.received(300)),
    range(1, 300).map((n) => `message ${n}`),
  )
})

t.test('at most 1 MiB is un-acked in the window, and a larger message goes alone', async (t) => {
  const [owner, sender] = [await service.connect(), await service.connect()]
  const connectionId = newConnectionId()
  await open(owner, connectionId)
  const add = (size: number) => sender.call('addMessage', message(connectionId, 0, { payload: 'x'.repeat(size) }))
  await add(600_000)
  await add(600_000)
  await add(2_000_000)
  const sizes = async (count: number) => (await owner.received(count)).map((m) => m.encryptedMessage.length)
  const ack = async (n: number) => owner.call('removeMessages', { connectionId, messageIds: [(await owner.received(n + 1))[n]!.id] })
  t.same(await sizes(1), [600_000])
  await ack(0)
  t.same(await sizes(2), [600_000, 600_000])
  await ack(1)
  t.same(await sizes(3), [600_000, 600_000, 2_000_000])
})

t.test('a session over REST has no socket: it is live, and nothing is delivered', async (t) => {
  const connectionId = newConnectionId()
  const owner = await service.connect()
  await open(owner, connectionId)
  const path = `/v1/connections/${connectionId}/live-session`
  t.same(await service.rest('PUT', path, { sessionId: 'poller' }), { status: 200, body: true })
  await owner.frame(({ method }) => method === 'liveSessionReplaced')
  t.same(await service.rest('GET', path), { status: 200, body: true })
  await owner.call('addMessage', message(connectionId))
  t.equal(await owner.call('getAvailableMessageCount', { connectionId }), 1)
  t.same(await service.rest('DELETE', path), { status: 200, body: true })
  t.same(await service.rest('GET', path), { status: 200, body: null })
})

t.test('a lease that runs out brings the message back, and it is delivered again', async (t) => {
  const own = await startService(t, { LEASE_MS: '300' })
  const [owner, sender] = [await own.connect(), await own.connect()]
  const connectionId = newConnectionId()
  await sender.call('addMessage', message(connectionId, 1))
  await open(owner, connectionId)
  await sender.call('takeFromQueue', { connectionId })
  t.equal(await sender.call('getAvailableMessageCount', { connectionId }), 0)
  while ((await sender.call('getAvailableMessageCount', { connectionId })) === 0);
  t.same(texts(await sender.call('takeFromQueue', { connectionId })), ['message 1'])
})

t.test('a socket that does not answer pings is closed, and its sessions end', async (t) => {
  const own = await startService(t, { PING_INTERVAL_MS: '100', PONG_TIMEOUT_MS: '300' })
  const [phantom, witness] = [await own.connect(), await own.connect()]
  const connectionId = newConnectionId()
  await open(phantom, connectionId)
  phantom.socket.pause() // reads nothing any more, like a process that was stopped
  while ((await witness.call('getLiveSession', { connectionId })) !== null) await once(witness.socket, 'ping')
  t.equal(witness.socket.readyState, witness.socket.OPEN, 'one that answers stays')
})

t.test('closing the service finishes running calls, ends the sessions and closes the sockets with 1012', async (t) => {
  const own = await startService(t)
  const client = await own.connect()
  const connectionId = newConnectionId()
  await open(client, connectionId)
  const calls = range(1, 100).map((n) => client.ask('addMessage', message(connectionId, n)))
  const closed = once(client.socket, 'close')
  await calls[0]
  await own.app.close()
  const [code] = (await closed) as [number]
  t.equal(code, 1012)
  const answered = client.frames.filter(({ id }) => id !== undefined)
  const refused = answered.filter(({ error }) => error !== undefined)
  t.ok(refused.every(({ error }) => error!.data.code === 'shutting_down' && error!.data.retryable))

  const again = await startService(t, { DATABASE_URL: own.databaseUrl })
  const { body: stored } = await again.rest('POST', `/v1/connections/${connectionId}/messages/take`, {})
  const acknowledged = answered.filter(({ result }) => typeof result === 'string').map(({ result }) => result)
  for (const id of acknowledged) t.ok(stored.some((message: { id: string }) => message.id === id))
  t.same((await again.rest('GET', `/v1/connections/${connectionId}/live-session`)).body, null)
  await t.rejects(connect(own.url.replace('http', 'ws') + '/ws'), 'the closed service is gone')
})

t.test('closing the service waits for nobody who only connected, and takes nobody who comes late', async (t) => {
  const own = await startService(t)
  const mute = await own.connect()
  mute.socket.pause() // does not answer that it is to close, so that closing takes a while
  const port = Number(new URL(own.url).port)
  const [wordless, late] = [tcp.connect(port), tcp.connect(port)]
  await Promise.all([once(wordless, 'connect'), once(late, 'connect')])
  await own.rest('GET', `/v1/connections/${newConnectionId()}/live-session`) // both have been accepted before it
  const started = performance.now()
  const closed = own.app.close()
  while (own.app.server.listening) await nextTurn()
  const ended = once(late, 'end')
  const answer = once(late, 'data')
  late.write('GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n')
  late.write('Sec-WebSocket-Version: 13\r\n\r\n')
  t.match(String((await answer)[0]), /^HTTP\/1.1 503 /)
  await ended
  const [refused] = await once(tcp.connect(port), 'error')
  t.match(refused, { code: 'ECONNREFUSED' })
  t.notOk(wordless.closed)
  await closed
  t.ok(performance.now() - started < 9_000, 'in time for an orderly end')
})

t.test('a session that was recorded while its caller was told nothing does not stay live for ever', async (t) => {
  const client = await service.connect()
  const connectionId = newConnectionId()
  const database = new pg.Client(service.databaseUrl)
  await database.connect()
  t.teardown(() => database.end())
  // As if the answer to the directory had been lost after its commit.
  await database.query("INSERT INTO live_sessions (connection_id, session_id, instance_id, since_seq) VALUES ($1, 'orphan', $2, 0)", [
    connectionId,
    service.inside.sessions.instanceId,
  ])
  t.equal(await client.call('getLiveSession', { connectionId }), true)
  await client.call('addMessage', message(connectionId))
  while ((await client.call('getLiveSession', { connectionId })) !== null); // the next tick ends it
})

t.test('a delivery that failed is tried again within a second or two, and not when everything is looked at', async (t) => {
  const client = await service.connect()
  const { store, pubsub } = service.inside
  const { claim } = store
  t.teardown(() => (store.claim = claim))
  const connectionIds = range(1, 5).map(newConnectionId)
  for (const connectionId of connectionIds) await open(client, connectionId)
  await sleep(1_700) // by then none of them looks by itself any more
  const started = performance.now()
  for (const [i, connectionId] of connectionIds.entries()) {
    const failed = new Promise<void>((resolve) => {
      store.claim = async () => {
        resolve()
        throw new CallError('unavailable', 'as if the database were away')
      }
    })
    const payload = jsonBytes(JSON.stringify({ ciphertext: `message ${i}` }))
    await byPromise(store).add({ connectionId, recipientDids: [DID], payload, payloadBytes: payload.length })
    pubsub.publish(connectionId)
    await failed
    store.claim = claim
    await client.received(i + 1)
  }
  t.ok(performance.now() - started < 10_000, 'five of them would take four looks at everything, one in 5 s')
})

t.test('thousands of sockets that close together end their sessions in a few statements', async (t) => {
  let statements = 0
  let ended = 0
  const directory = {
    open: async () => ({ epoch: ++epochs }),
    closeMany: async (sessions: unknown[]) => {
      statements++
      await new Promise((resolve) => setImmediate(resolve))
      ended += sessions.length
    },
  }
  let epochs = 0
  const liveSessions = createLiveSessions({
    store: {} as never,
    directory: directory as never,
    pubsub: { ...createInProcessPubSub() },
    log: silent,
    now: () => 0,
    leaseMs: 30_000,
  })
  const sockets = range(1, 5_000).map((n) => ({ id: String(n), isOpen: true, bufferedBytes: 0, send() {} }))
  for (const socket of sockets) await liveSessions.add(socket.id, 's', socket)
  for (const socket of sockets) liveSessions.socketClosed(socket)
  while (ended < 5_000) await new Promise((resolve) => setImmediate(resolve))
  t.equal(ended, 5_000, 'each once')
  t.ok(statements <= 6, `${statements} statements`)
})

t.test('a message whose add was committed, although its answer was lost, is delivered at once', async (t) => {
  const { connectionId, adding, store, socket } = await heldHere()
  await adding('1', store.add)
  await t.rejects(
    adding('2', async (message) => {
      t.ok((await store.add(message)).claimed)
      throw new Error('the connection to the database was lost')
    }),
  )
  await socket.until(2)
  t.same(socket.texts(), ['1', '2'])
  t.equal(await store.count(connectionId), 0)
})

t.test('what a claim marked, although its answer was lost, comes with the next one', async (t) => {
  let lose = () => {}
  const lost = new Promise<void>((resolve) => (lose = resolve))
  let claims = 0
  const { adding, store, socket } = await heldHere({
    async claim(claim) {
      const claimed = await service.inside.store.claim(claim)
      if (claims++ > 0) return claimed
      t.equal(claimed.messages.length, 1)
      lose()
      throw new Error('the connection to the database was lost')
    },
  })
  const addPlainly: StoreByPromise['add'] = (message) => store.add({ ...message, claimFor: undefined })
  await adding('1', addPlainly)
  await lost
  await adding('2', addPlainly)
  await socket.until(2)
  t.same(socket.texts(), ['1', '2'])
})

t.test('an add that is refused leaves the next one to be sent from memory', async (t) => {
  const { adding, store, socket } = await heldHere()
  const refused = new CallError('overloaded', 'not now')
  await t.rejects(
    adding('1', () => Promise.reject(refused)),
    refused,
  )
  t.ok((await adding('2', store.add)).claimed)
  await socket.until(1)
})

t.test('what an add claimed for a session that was displaced meanwhile goes to the new one', async (t) => {
  const { connectionId, liveSessions, adding, store, socket } = await heldHere()
  const newer = collecting()
  await adding('1', async (message) => {
    const added = await store.add(message)
    t.ok(added.claimed)
    await liveSessions.add(connectionId, 'newer', newer)
    return added
  })
  await adding('2', store.add)
  await newer.until(1)
  t.same(newer.texts(), ['2'], 'the first is backlog for it, which it asks for')
  t.same(socket.texts(), [])
  t.equal(await store.count(connectionId), 1)
})

t.test('adds that end together go in one frame, in order', async (t) => {
  const { adding, store, socket } = await heldHere()
  await Promise.all(range(1, 20).map((n) => adding(String(n), store.add)))
  await socket.until(20)
  t.same(socket.texts(), range(1, 20).map(String))
  t.ok(socket.frames.length < 5, `${socket.frames.length} frames`)
})

t.test('a hint is published only where somebody is live elsewhere', async (t) => {
  const hints: string[] = []
  const counted = { ...service.inside.pubsub, publish: (connectionId: string) => hints.push(connectionId) }
  const { connectionId, adding, store } = instance({ pubsub: counted })
  await adding('1', store.add)
  t.same(hints, [])
  const elsewhere = instance({ connectionId, sessions: await otherSessions(t) })
  await elsewhere.liveSessions.add(connectionId, 's', elsewhere.socket)
  await adding('2', store.add)
  t.same(hints, [connectionId])
  await elsewhere.liveSessions.remove(connectionId, 's', elsewhere.socket)
  await adding('3', store.add)
  t.same(hints, [connectionId])
})

t.test('what was being written while a session was opened is delivered, although its add tells nobody', async (t) => {
  for (const look of [1, 2]) {
    const others = await otherSessions(t)
    let looks = 0
    // It is committed before this look, and after the one before.
    const waiting: SessionDirectory['waiting'] = async (...asked) => {
      if (++looks === look) await commit()
      return others.waiting(...asked)
    }
    const { connectionId, liveSessions, socket } = instance({ sessions: { ...others, waiting } })
    const { commit } = await beingWritten(t, connectionId, '1')
    await liveSessions.add(connectionId, 's', socket)
    t.ok(await inTime(socket.until(1)))
    t.same(socket.texts(), ['1'])
    t.equal(looks, look)
  }
})

t.test('what was being written while a session was opened comes before what is added afterwards', async (t) => {
  const { connectionId, liveSessions, adding, store, socket } = instance({ sessions: await otherSessions(t) })
  const { commit } = await beingWritten(t, connectionId, '1')
  await liveSessions.add(connectionId, 's', socket)
  const after: (string | undefined)[] = []
  const add: StoreByPromise['add'] = (message) => {
    after.push(message.claimFor?.after)
    return store.add(message)
  }
  const zero = await adding('0', add)
  t.ok(zero.claimed)
  await commit()
  await adding('2', add)
  t.ok(await inTime(socket.until(3)))
  t.same(socket.texts(), ['0', '1', '2'])
  t.same(after, [undefined, undefined], 'all that came during the session is looked at')
  await sleep(1_700)
  await adding('3', add)
  t.type(after.at(-1), 'string', 'and later only what came after the last one')
})

t.test('a session whose looking again fails tries once more', async (t) => {
  const others = await otherSessions(t)
  let looks = 0
  const waiting: SessionDirectory['waiting'] = async (...asked) => {
    if (++looks === 1) throw new CallError('unavailable', 'as if the database were away')
    return others.waiting(...asked)
  }
  const { connectionId, liveSessions, socket } = instance({ sessions: { ...others, waiting } })
  const { commit } = await beingWritten(t, connectionId, '1')
  await liveSessions.add(connectionId, 's', socket)
  await commit()
  t.ok(await inTime(socket.until(1)))
  t.same(socket.texts(), ['1'])
})

t.test('sessions that were opened together look again together, and those that are over not at all', async (t) => {
  const asked: string[] = []
  let looks = 0
  let epochs = 0
  const directory = {
    open: async () => ({ epoch: ++epochs }),
    closeMany: async () => {},
    waiting: async (_leaseMs: number, connectionIds: string[]) => {
      looks++
      asked.push(...connectionIds)
      return []
    },
  }
  const { liveSessions } = instance({ sessions: directory as never, pubsub: createInProcessPubSub() })
  const sockets = range(1, 1_000).map((n) => ({ id: String(n), isOpen: true, bufferedBytes: 0, send() {} }))
  for (const socket of sockets) await liveSessions.add(socket.id, 's', socket)
  for (const socket of sockets.slice(0, 500)) liveSessions.socketClosed(socket)
  await sleep(1_700)
  t.same(asked.filter((id) => Number(id) > 500).length, 2 * 500)
  t.ok(asked.length < 2 * 1_000 && looks <= 10, `${looks} looks at ${asked.length} sessions`)
})

for (const when of ['opened', 'being opened'] as const)
  t.test(`what was being written here while a session was ${when} here is delivered without looking for it`, async (t) => {
    const others = await otherSessions(t)
    let answer = () => {}
    const answered = new Promise<void>((resolve) => (answer = resolve))
    const sessions: SessionDirectory = {
      ...others,
      waiting: () => Promise.reject(new Error('nobody is to look')),
      async open(session) {
        const opened = await others.open(session)
        if (when === 'opened') answer()
        else recorded()
        await answered
        return opened
      },
    }
    let recorded = () => {}
    const isRecorded = new Promise<void>((resolve) => (recorded = resolve))
    const { connectionId, liveSessions, adding, socket } = instance({ sessions })
    await adding('1', async () => {
      const { commit } = await beingWritten(t, connectionId, '1')
      const opening = liveSessions.add(connectionId, 's', socket)
      await (when === 'opened' ? opening : isRecorded)
      await commit()
      return { id: 'as the store says', nobodyElseIsLive: true }
    })
    await sleep(100) // the hint goes out and comes back
    answer()
    t.ok(await inTime(socket.until(1)))
  })

t.test('a session that was ended elsewhere, and heard nothing of it, ends with the next add here', async (t) => {
  const others = await otherSessions(t)
  const { connectionId, liveSessions, adding, store, socket } = instance({ sessions: others })
  await liveSessions.add(connectionId, 's', socket)
  await others.close({ connectionId })
  t.equal(liveSessions.stats().sessions, 1)
  t.notOk((await adding('1', store.add)).claimed)
  for (let i = 0; i < 300 && liveSessions.stats().sessions > 0; i++) await sleep(10)
  t.equal(liveSessions.stats().sessions, 0)
  t.same(socket.texts(), [])
})

/** Whether it is so within longer than a session looks again. */
function inTime(done: Promise<unknown>): Promise<boolean> {
  return Promise.race([done.then(() => true), sleep(3_500, false)])
}

/** A message as another instance writes it, which says nothing to anybody, before it is committed. */
async function beingWritten(t: Test, connectionId: string, text: string) {
  const writer = new pg.Client(service.databaseUrl)
  await writer.connect()
  t.teardown(() => writer.end())
  const payload = JSON.stringify({ text })
  await writer.query('BEGIN')
  await writer.query(
    'INSERT INTO queued_messages (connection_id, tag, recipient_dids, payload, payload_bytes) VALUES ($1, 1, $2, $3, $4)',
    [connectionId, [DID], payload, payload.length],
  )
  return { commit: () => writer.query('COMMIT') }
}

/** Sessions of another instance: the service ends what is its own and that it does not know of. */
async function otherSessions(t: Test): Promise<SessionDirectory> {
  const { pool } = service.inside.pg
  const sessions = createPostgresSessions({ pool, query: createQuery(pool) })
  await sessions.renew()
  t.teardown(() => sessions.closeAll())
  return sessions
}

interface InstanceOptions {
  connectionId?: string
  store?: Partial<MessageStore>
  pubsub?: PubSub
  sessions?: SessionDirectory
}

/** An instance of which only this part exists, on the store of the service, and a connection with a socket. */
function instance({
  connectionId = newConnectionId(),
  store: changed = {},
  pubsub = service.inside.pubsub,
  sessions: directory = service.inside.sessions,
}: InstanceOptions = {}) {
  const store = { ...service.inside.store, ...changed }
  const liveSessions = createLiveSessions({ store, directory, pubsub, log: silent, now: () => performance.now(), leaseMs: 30_000 })
  const socket = collecting()
  const adding = async (text: string, add: StoreByPromise['add']) => {
    const payload = jsonBytes(JSON.stringify({ text }))
    const message = { connectionId, recipientDids: [DID], payload, payloadBytes: payload.length }
    const added = await promised<Added>((told) => liveSessions.adding(message, byTold(add), told))
    liveSessions.added(connectionId, added)
    return added
  }
  return { connectionId, liveSessions, adding, store: byPromise(store), socket }
}

/** One where the connection is live. */
async function heldHere(store: Partial<MessageStore> = {}) {
  const made = instance({ store })
  await made.liveSessions.add(made.connectionId, 's', made.socket)
  return made
}

function collecting() {
  const frames: { params: { messages: { encryptedMessage: { text: string } }[] } }[] = []
  const texts = () => frames.flatMap(({ params }) => params.messages.map(({ encryptedMessage }) => encryptedMessage.text))
  let look = () => {}
  return {
    id: 'collecting',
    isOpen: true,
    bufferedBytes: 0,
    frames,
    texts,
    send(text: string) {
      const frame = JSON.parse(text)
      if (frame.method === 'messagesReceived') frames.push(frame)
      look()
    },
    until: (count: number) =>
      new Promise<void>((resolve) => {
        look = () => texts().length >= count && resolve()
        look()
      }),
  }
}
