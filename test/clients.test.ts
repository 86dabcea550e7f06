import { once } from 'node:events'
import { Client as Client7 } from 'rpc-websockets-7'
import { Client as Client10 } from 'rpc-websockets-10'
import t, { type Test } from 'tap'
import WebSocket from 'ws'
import { DID, message, newConnectionId, startService, testDatabase, type Service } from './helpers/service.js'

/** What mediators are given: a published client as it is, and a URL. */
interface Client {
  call(method: string, params?: object, timeout?: number): Promise<any>
  subscribe(event: string): Promise<unknown>
  unsubscribe(event: string): Promise<unknown>
  notify(method: string, params?: object): Promise<void>
  once(event: string, listener: (...values: any[]) => void): unknown
  setAutoReconnect(reconnect: boolean): void
  close(code?: number): void
}

const RECONNECT = { reconnect_interval: 50, max_reconnects: 0 } // forever
const CLIENTS: Record<string, (url: string) => Client> = {
  'rpc-websockets 7': (url) => new Client7(url, RECONNECT),
  'rpc-websockets 10': (url) => new Client10(url, RECONNECT),
}
/** What the published clients do before they give up on a call. */
const CLIENT_TIMEOUT_MS = 2_000

const service = await startService(t)

const wsUrl = ({ url }: Service, path = '') => url.replace('http', 'ws') + path

function event(client: Client, name: string): Promise<any[]> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error(`${name} did not come within 10 s`)), 10_000)
    client.once(name, (...values) => {
      clearTimeout(timer)
      resolve(values)
    })
  })
}

/** Connected, and with the answer to a call that comes in time or not at all. */
async function open(t: Test, create: (url: string) => Client, url: string) {
  const client = create(url)
  t.teardown(() => {
    client.setAutoReconnect(false)
    try {
      client.close()
    } catch {
      // it has no socket while it waits to reconnect
    }
  })
  await event(client, 'open')
  const call = (method: string, params?: object) => client.call(method, params, CLIENT_TIMEOUT_MS)
  return { client, call }
}

for (const [name, create] of Object.entries(CLIENTS)) {
  for (const [where, path] of [
    ['the bare host', ''],
    ['/', '/'],
    ['/ws', '/ws'],
  ] as const) {
    t.test(`${name} calls all eight methods on ${where}`, async (t) => {
      const { call } = await open(t, create, wsUrl(service, path))
      const connectionId = newConnectionId()
      const id = await call('addMessage', message(connectionId, 1))
      t.type(id, 'string')
      await call('addMessage', message(connectionId, 2))
      t.equal(await call('getAvailableMessageCount', { connectionId }), 2)
      const taken = await call('takeFromQueue', { connectionId, limit: 10 })
      t.equal(taken[0].id, id)
      t.same(taken[0].encryptedMessage, message(connectionId, 1).payload)
      t.equal(await call('removeMessages', { connectionId, messageIds: [id] }), null)
      t.equal(await call('removeAllMessages', { connectionId, recipientDid: DID }), null)
      t.equal(await call('getAvailableMessageCount', { connectionId, recipientDid: DID }), 0)
      t.equal(await call('getLiveSession', { connectionId }), null)
      t.equal(await call('addLiveSession', { connectionId, sessionId: 'session' }), true)
      t.equal(await call('getLiveSession', { connectionId }), true)
      t.equal(await call('removeLiveSession', { connectionId }), true)
      t.equal(await call('removeLiveSession', { connectionId }), false)
    })
  }

  t.test(`${name} receives messagesReceived for a message that is added while it is live`, async (t) => {
    const { client, call } = await open(t, create, wsUrl(service))
    const sender = await service.connect()
    const connectionId = newConnectionId()
    t.same(await client.subscribe('messagesReceived'), { messagesReceived: 'ok' })
    await call('addLiveSession', { connectionId, sessionId: 'session' })
    const received = event(client, 'messagesReceived')
    const id = await sender.call('addMessage', message(connectionId, 7))
    const [params, ...more] = await received
    t.strictSame(more, [])
    t.match(params.messages[0].receivedAt, /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/)
    const { receivedAt } = params.messages[0]
    t.strictSame(params, { connectionId, messages: [{ id, receivedAt, encryptedMessage: message(connectionId, 7).payload }], id: '' })
    t.equal(await call('removeMessages', { connectionId, messageIds: [id] }), null)
  })

  t.test(`${name} receives messagesReceived without having subscribed`, async (t) => {
    const { client, call } = await open(t, create, wsUrl(service))
    const connectionId = newConnectionId()
    await call('addLiveSession', { connectionId, sessionId: 'session' })
    const received = event(client, 'messagesReceived')
    const id = await call('addMessage', message(connectionId))
    t.equal((await received)[0].messages[0].id, id)
  })

  t.test(`${name} subscribes, unsubscribes, pings and is told what does not exist`, async (t) => {
    const { client, call } = await open(t, create, wsUrl(service))
    t.same(await client.subscribe('messagesReceived'), { messagesReceived: 'ok' })
    t.same(await client.unsubscribe('messagesReceived'), { messagesReceived: 'ok' })
    t.not(((await client.subscribe('somethingElse')) as Record<string, string>).somethingElse, 'ok')
    t.equal(await call('ping'), 'pong')
    t.equal(await call('ping', {}), 'pong')
    await client.notify('ping')
    await t.rejects(call('unknownMethod', {}), { code: -32601 })
    await t.rejects(call('takeFromQueue', { connectionId: '' }), { code: -32602, data: { code: 'invalid_params', field: 'connectionId' } })
  })

  t.test(`${name} is told when a newer socket takes its live session`, async (t) => {
    const { client, call } = await open(t, create, wsUrl(service))
    const connectionId = newConnectionId()
    await call('addLiveSession', { connectionId, sessionId: 'first' })
    const replaced = event(client, 'liveSessionReplaced')
    const newer = await service.connect()
    await newer.call('addLiveSession', { connectionId, sessionId: 'second' })
    t.equal((await replaced)[0].connectionId, connectionId)
  })

  t.test(`${name} sends Credo's burst without waiting and finds it done in that order`, async (t) => {
    const { call } = await open(t, create, wsUrl(service))
    const connectionId = newConnectionId()
    await call('addMessage', message(connectionId))
    t.same(
      await Promise.all([
        call('removeLiveSession', { connectionId }),
        call('addLiveSession', { connectionId, sessionId: 'session' }),
        call('getAvailableMessageCount', { connectionId }),
        call('getLiveSession', { connectionId }),
      ]),
      [false, true, 1, true],
    )
  })

  t.test(`${name} reconnects by itself when the service restarts, and finds its messages`, async (t) => {
    const settings = { DATABASE_URL: await testDatabase(t) }
    const first = await startService(t, settings)
    const { port } = new URL(first.url)
    const { client, call } = await open(t, create, wsUrl(first))
    const connectionId = newConnectionId()
    await call('addLiveSession', { connectionId, sessionId: 'session' })

    const closed = event(client, 'close')
    const reopened = event(client, 'open')
    await first.app.close()
    t.equal((await closed)[0], 1012)
    const second = await startService(t, { ...settings, PORT: port })
    await reopened

    t.equal(await call('getLiveSession', { connectionId }), null, 'its session ended with the socket')
    t.equal(await call('addLiveSession', { connectionId, sessionId: 'session' }), true)
    const received = event(client, 'messagesReceived')
    const id = await (await second.connect()).call('addMessage', message(connectionId))
    t.equal((await received)[0].messages[0].id, id)
  })

  for (const path of ['/?dialect=2060', '?dialect=2060', '/ws?dialect=2060']) {
    t.test(`${name} with the dialect 2060 on ${path} gets what the client of 2060 insists on`, async (t) => {
      const { client, call } = await open(t, create, wsUrl(service, path))
      const connectionId = newConnectionId()
      const { messageId, ...more } = await call('addMessage', message(connectionId, 1))
      t.type(messageId, 'string')
      t.strictSame(more, {})
      t.equal(await call('getAvailableMessageCount', { connectionId }), 1)
      const taken = await call('takeFromQueue', { connectionId, limit: 10 })
      t.equal(taken[0].id, messageId)
      t.equal(taken[0].receivedAt, new Date(taken[0].receivedAt).toISOString())
      t.same(taken[0].encryptedMessage, message(connectionId, 1).payload)
      t.equal(await call('removeMessages', { connectionId, messageIds: [messageId] }), true)
      t.equal(await call('removeAllMessages', { connectionId, recipientDid: DID }), true)
      t.equal(await call('getAvailableMessageCount', { connectionId }), 0)
      t.equal(await call('getLiveSession', { connectionId }), false)
      t.equal(await call('addLiveSession', { connectionId, sessionId: 'session' }), true)
      t.equal(await call('getLiveSession', { connectionId }), true)
      const received = event(client, 'messagesReceived')
      const added = await call('addMessage', message(connectionId, 2))
      t.equal((await received)[0].messages[0].id, added.messageId)
      t.equal(await call('removeLiveSession', { connectionId }), true)
      t.equal(await call('removeLiveSession', { connectionId }), false)
      t.equal(await call('ping'), 'pong')
      t.same(await client.subscribe('messagesReceived'), { messagesReceived: 'ok' })
      await t.rejects(call('takeFromQueue', {}), { code: -32602 })
    })
  }

  t.test(`${name} survives being refused for an unknown dialect`, async (t) => {
    const client = create(wsUrl(service, '/?dialect=unknown'))
    client.setAutoReconnect(false)
    const [error] = await event(client, 'error')
    t.match(error.message, '400')
  })
}

t.test('a socket of one dialect does not change what another gets', async (t) => {
  const plain = await service.connect('/')
  const dialect = await service.connect('/?dialect=2060')
  const connectionId = newConnectionId()
  t.equal(await dialect.call('getLiveSession', { connectionId }), false)
  t.equal(await plain.call('getLiveSession', { connectionId }), null)
})

t.test('the dialect holds inside a batch', async (t) => {
  const client = await service.connect('/?dialect=2060')
  const connectionId = newConnectionId()
  const replies = await client.raw(
    JSON.stringify([
      { jsonrpc: '2.0', id: 1, method: 'getLiveSession', params: { connectionId } },
      { jsonrpc: '2.0', id: 2, method: 'getAvailableMessageCount', params: { connectionId } },
    ]),
  )
  t.same(
    replies.map(({ result }: { result: unknown }) => result),
    [false, 0],
  )
})

t.test('an unknown dialect is refused at the upgrade with HTTP 400 and an error that names it', async (t) => {
  for (const path of [
    '/?dialect=unknown',
    '/ws?dialect=unknown',
    '/ws?dialect=',
    '/ws?dialect=__proto__',
    '/ws?dialect=2060&dialect=2060',
  ]) {
    const socket = new WebSocket(wsUrl(service, path))
    socket.on('error', () => {})
    const [, response] = (await once(socket, 'unexpected-response')) as [unknown, AsyncIterable<Buffer> & { statusCode: number }]
    t.equal(response.statusCode, 400, path)
    let text = ''
    for await (const chunk of response) text += chunk.toString()
    t.match(JSON.parse(text), { error: { code: -32600, data: { code: 'invalid_request', field: 'dialect' } } }, path)
    t.match(text, '2060', 'it says what there is')
    socket.terminate()
  }
})
