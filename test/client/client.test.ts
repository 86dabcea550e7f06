import { once } from 'node:events'
import t, { type Test } from 'tap'
import { createClient, MessagePickupError, type ClientOptions, type EventName, type Events } from '../../packages/client/src/index.js'
import { startProxy } from '../helpers/proxy.js'
import { startScripted } from '../helpers/scripted.js'
import { DID, message, newConnectionId, startService } from '../helpers/service.js'

type Client = ReturnType<typeof createClient>

const service = await startService(t)
const port = Number(new URL(service.url).port)
const url = `${service.url.replace('http', 'ws')}/ws`

function open(t: Test, options: Partial<ClientOptions> = {}): Client {
  const client = createClient({ url, callTimeoutMs: 5_000, ...options })
  t.teardown(() => client.close())
  return client
}

/** Resolves with the next event for which `test` is true. */
function event<Name extends EventName>(
  client: Client,
  name: Name,
  test: (event: Events[Name]) => boolean = () => true,
): Promise<Events[Name]> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error(`${name} did not come within 10 s`)), 10_000)
    const off = client.on(name, (event) => {
      if (!test(event)) return
      off()
      clearTimeout(timer)
      resolve(event)
    })
  })
}

const failure = (promise: Promise<unknown>): Promise<MessagePickupError> =>
  promise.then(
    (result) => Promise.reject(new Error(`it answered ${JSON.stringify(result)}`)),
    (error: MessagePickupError) => error,
  )

t.test('all eight methods answer what the specification says', async (t) => {
  const client = open(t)
  const connectionId = newConnectionId()
  const id = await client.addMessage(message(connectionId, 1))
  t.type(id, 'string')
  await client.addMessage(message(connectionId, 2))
  t.equal(await client.getAvailableMessageCount({ connectionId }), 2)
  const [first, second] = await client.takeFromQueue({ connectionId, limit: 10 })
  t.equal(first!.id, id)
  t.same(first!.encryptedMessage, message(connectionId, 1).payload)
  t.match(second!.receivedAt, /^\d{4}-.*Z$/)
  t.equal(await client.removeMessages({ connectionId, messageIds: [id] }), null)
  t.equal(await client.removeAllMessages({ connectionId, recipientDid: DID }), null)
  t.equal(await client.getAvailableMessageCount({ connectionId, recipientDid: DID }), 0)
  t.equal(await client.getLiveSession({ connectionId }), null)
  t.equal(await client.addLiveSession({ connectionId, sessionId: 'session' }), true)
  t.equal(await client.getLiveSession({ connectionId }), true)
  t.equal(await client.removeLiveSession({ connectionId }), true)
  t.equal(await client.removeLiveSession({ connectionId }), false)
})

t.test('a refused call is a MessagePickupError that says what was wrong', async (t) => {
  const client = open(t)
  const error = await failure(client.addMessage({ ...message(newConnectionId()), recipientDids: [] }))
  t.ok(error instanceof MessagePickupError)
  t.match(error, { code: 'invalid_params', field: 'recipientDids', retryable: false, isOutcomeUnknown: false, rpcCode: -32602, limit: 1 })
  t.match(error.message, /recipientDids must have at least 1 item/)
})

t.test('what arrives for a live session is an event', async (t) => {
  const client = open(t)
  const connectionId = newConnectionId()
  await client.addLiveSession({ connectionId, sessionId: 'session' })
  const received = event(client, 'messagesReceived')
  const id = await client.addMessage(message(connectionId, 7))
  t.match(await received, { connectionId, messages: [{ id, encryptedMessage: message(connectionId, 7).payload }] })
})

t.test('the key goes in the Authorization header, and nothing but the path in the URL', async (t) => {
  const scripted = await startScripted(t)
  const client = open(t, { url: `${scripted.url}?dialect=2060`, apiKey: 'secret' })
  await client.connect()
  t.equal(scripted.headers[0]!.authorization, 'Bearer secret')
  t.same(scripted.paths, ['/ws'], 'nor a dialect, whose answers this client does not understand')
})

t.test('a URL that is none is refused at once, and without showing what may be secret', async (t) => {
  t.throws(() => createClient({ url: 'http://user:secret@host/ws' }), {
    message: 'url must begin with ws:// or wss://, it is http://host/ws',
  })
  t.throws(() => createClient({ url: [] }), TypeError)
})

t.test('connect says when there is no service, goes on trying, and is connected when there is one', async (t) => {
  const nowhere = await startScripted(t)
  nowhere.close()
  const client = open(t, { url: nowhere.url, callTimeoutMs: 300 })
  const error = await failure(client.connect())
  t.match(error, { code: 'timeout', retryable: true })
  t.match(error.message, /ECONNREFUSED/)
  t.notOk(client.isConnected)
  const connected = event(client, 'connected')
  await startScripted(t, undefined, Number(new URL(nowhere.url).port))
  t.same(await connected, { url: nowhere.url })
  t.ok(client.isConnected)
  await client.connect()
})

t.test('a call made without a connection waits for it', async (t) => {
  const proxy = await startProxy({ port })
  t.teardown(() => proxy.close())
  proxy.cut()
  const client = open(t, { url: `ws://127.0.0.1:${proxy.port}/ws` })
  const connectionId = newConnectionId()
  const added = client.addMessage(message(connectionId))
  const counted = client.getAvailableMessageCount({ connectionId })
  await event(client, 'reconnecting')
  proxy.heal()
  t.type(await added, 'string')
  t.equal(await counted, 1, 'in the order of the calls')
})

t.test('beyond its bound the queue of calls that wait refuses with queue_full', async (t) => {
  const proxy = await startProxy({ port })
  t.teardown(() => proxy.close())
  proxy.cut()
  const client = open(t, { url: `ws://127.0.0.1:${proxy.port}/ws`, maxQueuedCalls: 3 })
  const connectionId = newConnectionId()
  const accepted = [1, 2, 3].map((n) => client.addMessage(message(connectionId, n)))
  t.match(await failure(client.addMessage(message(connectionId, 4))), {
    code: 'queue_full',
    retryable: true,
    limit: 3,
    isOutcomeUnknown: false,
  })
  proxy.heal()
  await Promise.all(accepted)
  t.equal(await client.getAvailableMessageCount({ connectionId }), 3)
  await client.addMessage(message(connectionId, 5))

  const small = open(t, { maxQueuedChars: 1_000 })
  const large = { ...message(connectionId), payload: { ciphertext: 'x'.repeat(1_000) } }
  t.match(await failure(small.addMessage(large)), { code: 'queue_full', limit: 1_000 })
})

t.test('a call has a deadline, and its error says whether it may have taken effect', async (t) => {
  const scripted = await startScripted(t, ({ method }) => (method === 'addMessage' ? 'silence' : undefined))
  const client = open(t, { url: scripted.url, callTimeoutMs: 200 })
  t.match(await failure(client.addMessage(message('c'))), { code: 'timeout', retryable: true, isOutcomeUnknown: true })
  scripted.close()
  await event(client, 'disconnected')
  const error = await failure(client.addMessage(message('c')))
  t.match(error, { code: 'timeout', retryable: true, isOutcomeUnknown: false })
  t.match(error.message, /never sent/)
})

t.test('addMessage whose answer was lost is repeated under its own key, or that of the caller', async (t) => {
  let lost = 0
  const scripted = await startScripted(t, ({ method }, socket) => {
    if (method !== 'addMessage' || lost++ >= 2) return undefined
    socket.terminate()
    return 'silence'
  })
  const client = open(t, { url: scripted.url })
  t.equal(await client.addMessage(message('c')), 'id')
  const keys = scripted.calls.map(({ params }) => params.idempotencyKey as string)
  t.equal(keys.length, 3)
  t.ok(keys[0]!.length > 20 && keys[0]!.length <= 128)
  t.equal(new Set(keys).size, 1)
  await client.addMessage(message('c'))
  await client.addMessage({ ...message('c'), idempotencyKey: 'mine' })
  t.not(scripted.calls.at(-2)!.params.idempotencyKey, keys[0])
  t.equal(scripted.calls.at(-1)!.params.idempotencyKey, 'mine')
})

t.test('repeated against the real service addMessage stores once', async (t) => {
  const proxy = await startProxy({ port })
  t.teardown(() => proxy.close())
  const client = open(t, { url: `ws://127.0.0.1:${proxy.port}/ws` })
  await client.connect()
  const connectionId = newConnectionId()
  const added = client.addMessage(message(connectionId))
  proxy.cut()
  await event(client, 'disconnected')
  proxy.heal()
  const id = await added
  t.same(
    (await client.takeFromQueue({ connectionId })).map((taken) => taken.id),
    [id],
  )
})

t.test('a call that must not be repeated fails with connection_lost when its answer is lost', async (t) => {
  const scripted = await startScripted(t, ({ method, params }) =>
    method === 'removeAllMessages' || params?.deleteMessages ? 'silence' : undefined,
  )
  const client = open(t, { url: scripted.url })
  const calls = [
    client.takeFromQueue({ connectionId: 'c', deleteMessages: true }),
    client.removeAllMessages({ connectionId: 'c', recipientDid: DID }),
  ].map(failure)
  await scripted.until(({ length }) => length === 2)
  scripted.sockets[0]!.terminate()
  for (const error of await Promise.all(calls)) t.match(error, { code: 'connection_lost', retryable: false, isOutcomeUnknown: true })
  await client.getAvailableMessageCount({ connectionId: 'c' })
  t.equal(scripted.calls.length, 3, 'they were sent once')
})

t.test('"not now" is repeated for what may be repeated, and told otherwise', async (t) => {
  const error = (code: string) => ({ error: { code: -32000, message: code, data: { code, retryable: true } } })
  const tries: Record<string, number> = {}
  const scripted = await startScripted(t, ({ method }) => {
    tries[method] = (tries[method] ?? 0) + 1
    if (method === 'addMessage' && tries[method] < 4) return error('unavailable')
    if (method === 'takeFromQueue' && tries[method] < 2) return error('overloaded')
    if (method === 'removeAllMessages') return error('timeout')
    return undefined
  })
  const client = open(t, { url: scripted.url })
  t.equal(await client.addMessage(message('c')), 'id')
  t.equal(tries.addMessage, 4)
  t.same(await client.takeFromQueue({ connectionId: 'c', deleteMessages: true }), [], 'what was refused had no effect')
  t.match(await failure(client.removeAllMessages({ connectionId: 'c', recipientDid: DID })), { code: 'timeout', isOutcomeUnknown: true })
  t.equal(tries.removeAllMessages, 1)
})

t.test('after a reconnect the sessions are added in their order, then acks and calls are sent, then the caller is told', async (t) => {
  const silent = new Set(['removeMessages', 'takeFromQueue'])
  const scripted = await startScripted(t, ({ method }) => (silent.has(method) ? 'silence' : undefined))
  const client = open(t, { url: scripted.url })
  for (const connectionId of ['a', 'b', 'c', 'd']) await client.addLiveSession({ connectionId, sessionId: `session ${connectionId}` })
  await client.removeLiveSession({ connectionId: 'b' })
  await client.addLiveSession({ connectionId: 'a', sessionId: 'newer' })
  const taken = client.takeFromQueue({ connectionId: 'c' })
  const removed = client.removeMessages({ connectionId: 'd', messageIds: ['1'] })
  await scripted.until((calls) => calls.at(-1)?.method === 'removeMessages')

  const seen = scripted.calls.length
  silent.clear()
  const restored = event(client, 'sessionsRestored')
  scripted.sockets[0]!.terminate()
  t.same(await restored, { connectionIds: ['c', 'd', 'a'] })
  await Promise.all([taken, removed])
  t.same(
    scripted.calls.slice(seen).map(({ method, params }) => [method, params.sessionId ?? params.connectionId]),
    [
      ['addLiveSession', 'session c'],
      ['addLiveSession', 'session d'],
      ['addLiveSession', 'newer'],
      ['removeMessages', 'd'],
      ['takeFromQueue', 'c'],
    ],
  )
})

t.test('sessions are live again after a reconnect, and their mail is found', async (t) => {
  const proxy = await startProxy({ port })
  t.teardown(() => proxy.close())
  const client = open(t, { url: `ws://127.0.0.1:${proxy.port}/ws` })
  const connectionIds = Array.from({ length: 300 }, newConnectionId)
  await Promise.all(connectionIds.map((connectionId) => client.addLiveSession({ connectionId, sessionId: 's' })))
  proxy.cut()
  await event(client, 'disconnected')
  const sender = open(t)
  await sender.addMessage(message(connectionIds[299]!))
  const restored = event(client, 'sessionsRestored')
  proxy.heal()
  t.same((await restored).connectionIds.sort(), [...connectionIds].sort())
  t.equal(await client.getAvailableMessageCount({ connectionId: connectionIds[299]! }), 1)
  t.equal(await sender.getLiveSession({ connectionId: connectionIds[0]! }), true)
  const received = event(client, 'messagesReceived')
  await sender.addMessage(message(connectionIds[0]!))
  t.equal((await received).connectionId, connectionIds[0])
})

t.test('a session that is refused for now is added again, one that is refused for good is told', async (t) => {
  let isSecond = false
  let refusals = 0
  const scripted = await startScripted(t, ({ method, params }) => {
    if (!isSecond || method !== 'addLiveSession') return undefined
    if (params.connectionId === 'never')
      return { error: { code: -32602, message: 'no', data: { code: 'invalid_params', retryable: false } } }
    return refusals++ < 3 ? { error: { code: -32003, message: 'later', data: { code: 'unavailable', retryable: true } } } : undefined
  })
  const client = open(t, { url: scripted.url })
  for (const connectionId of ['never', 'later']) await client.addLiveSession({ connectionId, sessionId: 's' })
  isSecond = true
  const failed = event(client, 'liveSessionFailed')
  const restored = event(client, 'sessionsRestored')
  scripted.sockets[0]!.terminate()
  t.match(await failed, { connectionId: 'never', error: { code: 'invalid_params' } })
  t.same(await restored, { connectionIds: ['later'] })
})

t.test('addLiveSession made offline is sent once, in its place, and answers', async (t) => {
  const scripted = await startScripted(t)
  const client = open(t, { url: scripted.url })
  await client.addLiveSession({ connectionId: 'a', sessionId: '1' })
  scripted.sockets[0]!.terminate()
  await event(client, 'disconnected')
  let told = 0
  client.on('sessionsRestored', ({ connectionIds }) => (told += connectionIds.length))
  const answers = await Promise.all([
    client.addLiveSession({ connectionId: 'b', sessionId: '2' }),
    client.addLiveSession({ connectionId: 'a', sessionId: '3' }),
    client.addLiveSession({ connectionId: 'a', sessionId: '4' }),
    client.getAvailableMessageCount({ connectionId: 'a' }),
  ])
  t.same(answers, [true, true, true, 0])
  t.same(
    scripted.calls.slice(1).map(({ method, params }) => [method, params.sessionId]),
    [
      ['addLiveSession', '2'],
      ['addLiveSession', '4'],
      ['getAvailableMessageCount', undefined],
    ],
    'the one that a newer one replaced before it began is not sent',
  )
  t.equal(told, 0, 'who just added them looks for mail anyway')
})

t.test('a session that was replaced is told, is not added again, and its late remove ends no other', async (t) => {
  const proxy = await startProxy({ port })
  t.teardown(() => proxy.close())
  const first = open(t, { url: `ws://127.0.0.1:${proxy.port}/ws` })
  const second = open(t)
  const connectionId = newConnectionId()
  const other = newConnectionId()
  await first.addLiveSession({ connectionId: other, sessionId: 'other' })
  await first.addLiveSession({ connectionId, sessionId: 'first' })
  const replaced = event(first, 'liveSessionReplaced')
  await second.addLiveSession({ connectionId, sessionId: 'second' })
  t.same(await replaced, { connectionId, sessionId: 'first' })
  proxy.cut()
  await event(first, 'disconnected')
  const restored = event(first, 'sessionsRestored')
  proxy.heal()
  t.same(await restored, { connectionIds: [other] })
  t.equal(await first.removeLiveSession({ connectionId }), false)
  t.equal(await first.removeLiveSession({ connectionId, sessionId: 'first' }), false)
  t.equal(await second.getLiveSession({ connectionId }), true)
})

t.test('removeLiveSession names the session of this client', async (t) => {
  const scripted = await startScripted(t)
  const client = open(t, { url: scripted.url })
  await client.addLiveSession({ connectionId: 'a', sessionId: '1' })
  await client.removeLiveSession({ connectionId: 'a' })
  t.same(scripted.calls.at(-1)!.params, { connectionId: 'a', sessionId: '1' })
})

t.test('each frame is one event, also after reconnects, and an old socket is not listened to', async (t) => {
  const scripted = await startScripted(t)
  const client = open(t, { url: scripted.url })
  const ids: string[] = []
  client.on('messagesReceived', ({ messages }) => ids.push(...messages.map(({ id }) => id)))
  await client.addLiveSession({ connectionId: 'a', sessionId: '1' })
  const push = (id: string, socket?: (typeof scripted.sockets)[number]) =>
    scripted.notify(
      'messagesReceived',
      { connectionId: 'a', messages: [{ id, receivedAt: '2026-01-31T12:00:00.000Z', encryptedMessage: {} }] },
      socket,
    )
  push('1')
  for (const again of [1, 2, 3]) {
    const restored = event(client, 'sessionsRestored')
    scripted.sockets.at(-1)!.close(1012)
    // Sent before the peer knows that it was left: what is in it comes again on the new socket, so it must not count here.
    await restored
    push(`${again + 1}`)
    await client.getLiveSession({ connectionId: 'a' })
  }
  t.same(ids, ['1', '2', '3', '4'])
})

t.test('what was removed does not come again, neither live nor from a take that was on its way', async (t) => {
  const queued = (id: string) => ({ id, receivedAt: '2026-01-31T12:00:00.000Z', encryptedMessage: {} })
  const held: any[] = []
  const scripted = await startScripted(t, (frame) => {
    if (frame.method === 'takeFromQueue') return (held.push(frame), 'silence')
    if (frame.method === 'removeMessages' && frame.params.messageIds.includes('refused'))
      return { error: { code: -32603, message: 'no', data: { code: 'internal_error', retryable: false } } }
    return undefined
  })
  const client = open(t, { url: scripted.url })
  const ids: string[] = []
  client.on('messagesReceived', ({ messages }) => ids.push(...messages.map(({ id }) => id)))
  await client.addLiveSession({ connectionId: 'a', sessionId: '1' })
  const taken = client.takeFromQueue({ connectionId: 'a' })
  await scripted.until((calls) => calls.at(-1)?.method === 'takeFromQueue')
  await client.removeMessages({ connectionId: 'a', messageIds: ['1'] })
  await failure(client.removeMessages({ connectionId: 'a', messageIds: ['refused'] }))
  scripted.notify('messagesReceived', { connectionId: 'a', messages: [queued('1'), queued('2')] })
  scripted.notify('messagesReceived', { connectionId: 'a', messages: [queued('1')] })
  scripted.answer(held[0], { result: ['1', 'refused', '2'].map(queued) })
  t.same(
    (await taken).map(({ id }) => id),
    ['refused', '2'],
  )
  t.same(ids, ['2'])
})

t.test('nothing is passed on for a session that is over', async (t) => {
  const scripted = await startScripted(t)
  const client = open(t, { url: scripted.url })
  client.on('messagesReceived', () => t.fail('it was passed on'))
  await client.addLiveSession({ connectionId: 'a', sessionId: '1' })
  await client.removeLiveSession({ connectionId: 'a' })
  scripted.notify('messagesReceived', {
    connectionId: 'a',
    messages: [{ id: '1', receivedAt: '2026-01-31T12:00:00.000Z', encryptedMessage: {} }],
  })
  scripted.notify('somethingNew', {})
  scripted.sockets[0]!.send('not JSON')
  scripted.sockets[0]!.send('null')
  t.equal(await client.getLiveSession({ connectionId: 'a' }), true)
})

t.test('pushTokenInvalid is an event', async (t) => {
  const scripted = await startScripted(t)
  const client = open(t, { url: scripted.url })
  await client.connect()
  const invalid = event(client, 'pushTokenInvalid')
  scripted.notify('pushTokenInvalid', { connectionId: 'a', token: 'abc123' })
  t.same(await invalid, { connectionId: 'a', token: 'abc123' })
})

t.test('a listener that throws is seen and stops nothing', async (t) => {
  const scripted = await startScripted(t)
  const client = open(t, { url: scripted.url })
  await client.connect()
  const thrown = t.capture(process, 'emit', (name: string) => name === 'uncaughtException')
  const second = event(client, 'pushTokenInvalid')
  client.on('pushTokenInvalid', () => {
    throw new Error('of the listener')
  })
  const third = event(client, 'pushTokenInvalid')
  scripted.notify('pushTokenInvalid', { connectionId: 'a' })
  await Promise.all([second, third])
  await client.getLiveSession({ connectionId: 'a' })
  t.match(thrown.args().find(([name]) => name === 'uncaughtException')?.[1], { message: 'of the listener' })
})

t.test('a half-open socket is noticed, and its calls are answered elsewhere', async (t) => {
  const proxy = await startProxy({ port })
  t.teardown(() => proxy.close())
  const client = open(t, { url: [`ws://127.0.0.1:${proxy.port}/ws`, url], pingIntervalMs: 200, pongTimeoutMs: 300 })
  const connectionId = newConnectionId()
  await client.addLiveSession({ connectionId, sessionId: 's' })
  const restored = event(client, 'sessionsRestored')
  proxy.blackHole()
  const added = client.addMessage(message(connectionId))
  t.match(await event(client, 'disconnected'), { code: 1006, reason: /^silent for/ })
  t.type(await added, 'string')
  t.same(await restored, { connectionIds: [connectionId] })
})

t.test('of several URLs the next is tried when one fails, and another when that is lost', async (t) => {
  const dead = await startScripted(t)
  dead.close()
  const [a, b] = [await startScripted(t), await startScripted(t)]
  const client = open(t, { url: [dead.url, a.url, b.url] })
  await client.connect()
  t.equal(a.sockets.length, 1)
  const connected = event(client, 'connected')
  a.sockets[0]!.close(1012)
  t.same(await connected, { url: b.url })
})

t.test('attempts are spread over a time that doubles up to its bound', async (t) => {
  const nowhere = await startScripted(t)
  nowhere.close()
  const client = createClient({ url: nowhere.url, maxReconnectDelayMs: 400, callTimeoutMs: 100 })
  const delays: number[] = []
  client.on('reconnecting', ({ delayMs }) => delays.push(delayMs))
  client.connect().catch(() => {})
  await event(client, 'reconnecting', ({ attempt }) => attempt === 12)
  await client.close()
  t.ok(delays[0]! <= 100 && delays[1]! <= 200)
  t.ok(Math.max(...delays) <= 400)
  t.equal(new Set(delays).size, delays.length, 'with jitter')
})

t.test('close finishes what is in flight, takes acks meanwhile, and then nothing', async (t) => {
  const held: any[] = []
  const scripted = await startScripted(t, (frame) => (frame.method === 'addMessage' ? (held.push(frame), 'silence') : undefined))
  const client = createClient({ url: scripted.url })
  await client.addLiveSession({ connectionId: 'a', sessionId: '1' })
  client.on('messagesReceived', () => t.fail('what came later goes to whoever is live next'))
  const added = client.addMessage(message('c'))
  await scripted.until((calls) => calls.at(-1)?.method === 'addMessage')
  const socketClosed = once(scripted.sockets[0]!, 'close')
  const closed = client.close()
  scripted.notify('messagesReceived', { connectionId: 'a', messages: [] })
  t.match(await failure(client.getLiveSession({ connectionId: 'a' })), { code: 'closed' })
  t.equal(await client.removeMessages({ connectionId: 'a', messageIds: ['1'] }), null)
  scripted.answer(held[0], { result: 'late' })
  t.equal(await added, 'late')
  await closed
  t.equal((await socketClosed)[0], 1000)
  t.match(await failure(client.removeMessages({ connectionId: 'a', messageIds: ['1'] })), { code: 'closed' })
  t.match(await failure(client.connect()), { code: 'closed' })
  await client.close()
})

t.test('closed while it waits to reconnect it leaves nothing behind', async (t) => {
  const nowhere = await startScripted(t)
  nowhere.close()
  const client = createClient({ url: nowhere.url })
  const connecting = failure(client.connect())
  await event(client, 'reconnecting')
  await client.close()
  t.match(await connecting, { code: 'closed' })
  client.on('reconnecting', () => t.fail('it went on'))
})

t.test('a session whose adding failed by its deadline is not live behind the back of the caller', async (t) => {
  let isSilent = true
  const scripted = await startScripted(t, ({ method }) => (isSilent && method === 'addLiveSession' ? 'silence' : undefined))
  const client = open(t, { url: scripted.url, callTimeoutMs: 200 })
  t.match(await failure(client.addLiveSession({ connectionId: 'a', sessionId: '1' })), { code: 'timeout' })
  await scripted.until((calls) => calls.at(-1)?.method === 'removeLiveSession')
  t.same(scripted.calls.at(-1)!.params, { connectionId: 'a', sessionId: '1' })
  isSilent = false
  t.equal(await client.addLiveSession({ connectionId: 'a', sessionId: '2' }), true)
})
