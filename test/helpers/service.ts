import { once } from 'node:events'
import { randomUUID } from 'node:crypto'
import pg from 'pg'
import Fastify, { type FastifyInstance, type RouteOptions } from 'fastify'
import WebSocket from 'ws'
import app, { serverOptions } from '../../app.js'
import { PLANNING } from '../../plugins/storage/index.js'
import { readConfig } from '../../src/config.js'
import { createDatabase, startTestPostgres } from './postgres.js'

interface Teardown {
  teardown(end: () => unknown): void
}

export interface Service {
  app: FastifyInstance
  /** http://127.0.0.1:port */
  url: string
  databaseUrl: string
  /** What the plugins decorated. */
  inside: FastifyInstance
  /** All that it serves. */
  routes: RouteOptions[]
  connect(path?: string, headers?: Record<string, string>): Promise<TestSocket>
  rest(verb: string, path: string, body?: unknown, headers?: Record<string, string>): Promise<{ status: number; body: any }>
}

/**
 * The real service on a port and a database of its own (or that of `settings.DATABASE_URL`), closed after the test.
 * Environment settings as the operator would give them.
 */
export async function startService(t: Teardown, settings: Record<string, string> = {}): Promise<Service> {
  let databaseUrl = settings.DATABASE_URL
  if (!databaseUrl) databaseUrl = await testDatabase(t)
  const config = readConfig({ PORT: '0', LOG_LEVEL: 'silent', ...settings, DATABASE_URL: databaseUrl })
  const fastify = Fastify(serverOptions(config))
  t.teardown(() => fastify.close())
  const routes: RouteOptions[] = []
  fastify.addHook('onRoute', (route) => void routes.push(route))
  let inside: FastifyInstance | undefined
  fastify.addHook('onRegister', (instance) => {
    inside ??= instance
  })
  await fastify.register(app, { config })
  const url = await fastify.listen({ host: config.HOST, port: config.PORT })
  return {
    app: fastify,
    url,
    databaseUrl,
    inside: inside!,
    routes,
    connect: (path = '/ws', headers = {}) => connect(url.replace('http', 'ws') + path, t, headers),
    async rest(verb, path, body, headers = {}) {
      const response = await fetch(url + path, {
        method: verb,
        headers: { ...(body !== undefined && { 'content-type': 'application/json' }), ...headers },
        ...(body !== undefined && { body: typeof body === 'string' ? body : JSON.stringify(body) }),
      })
      const isJson = response.headers.get('content-type')?.includes('json')
      return { status: response.status, body: isJson ? await response.json() : await response.text() }
    },
  }
}

/** A database of its own on the test server, dropped after the test. @returns its URL */
export async function testDatabase(t: Teardown): Promise<string> {
  const server = await startTestPostgres()
  const database = await createDatabase(server.url)
  t.teardown(async () => {
    await database.drop()
    await server.stop()
  })
  return database.url
}

/** Its connections may be on their way out when the database is dropped, and are told so. */
export function openPool(t: Teardown, options: pg.PoolConfig): pg.Pool {
  // As in the service: without it a statement may lock its rows in another order, and wait for another one in a circle.
  const pool = new pg.Pool({ ...options, ...PLANNING })
  pool.on('error', () => {})
  t.teardown(() => pool.end())
  return pool
}

export interface Frame {
  id?: unknown
  result?: any
  error?: { code: number; message: string; data: { code: string; retryable: boolean; field?: string; limit?: number } }
  method?: string
  params?: any
}

/** A WebSocket client that keeps every frame it got, so that tests wait for facts and never sleep. */
export interface TestSocket {
  socket: WebSocket
  frames: Frame[]
  /** Calls and returns the answer's frame. */
  ask(method: string, params?: unknown): Promise<Frame>
  /** Calls and returns the result; throws what the service answered as error. */
  call(method: string, params?: unknown): Promise<any>
  /** Sends a frame as it is and returns the next frame that comes. */
  raw(text: string | Buffer): Promise<any>
  /** Resolves once `count` messages came in messagesReceived frames, all together. */
  received(count: number): Promise<{ id: string; receivedAt: string; encryptedMessage: any; connectionId: string }[]>
  /** The first frame, past or future, for which `test` is true. */
  frame(test: (frame: Frame) => boolean): Promise<Frame>
  close(): Promise<void>
}

export async function connect(url: string, t?: Teardown, headers: Record<string, string> = {}): Promise<TestSocket> {
  const socket = new WebSocket(url, { perMessageDeflate: false, headers })
  const frames: any[] = []
  const watchers = new Set<() => void>()
  socket.on('message', (data: Buffer) => {
    frames.push(JSON.parse(data.toString()))
    for (const watch of [...watchers]) watch()
  })
  await once(socket, 'open')
  t?.teardown(() => socket.terminate())
  let calls = 0

  const until = <T>(look: () => T | undefined, what: string): Promise<T> =>
    new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        watchers.delete(watch)
        reject(new Error(`${what} did not come within 10 s; came: ${JSON.stringify(frames.slice(-5)).slice(0, 500)}`))
      }, 10_000)
      const watch = () => {
        const found = look()
        if (found === undefined) return
        clearTimeout(timer)
        watchers.delete(watch)
        resolve(found)
      }
      watchers.add(watch)
      watch()
    })

  const client: TestSocket = {
    socket,
    frames,
    ask(method, params) {
      const id = ++calls
      socket.send(JSON.stringify({ jsonrpc: '2.0', id, method, params }))
      return until(() => frames.find((frame) => frame.id === id && frame.method === undefined), `answer to ${method}`)
    },
    async call(method, params) {
      const { result, error } = await client.ask(method, params)
      if (error) throw Object.assign(new Error(error.message), error)
      return result
    },
    raw(text) {
      const seen = frames.length
      socket.send(text)
      return until(() => frames[seen], 'a frame')
    },
    received(count) {
      const messages = () =>
        frames.flatMap((frame) =>
          frame.method === 'messagesReceived'
            ? frame.params.messages.map((message: object) => ({ ...message, connectionId: frame.params.connectionId }))
            : [],
        )
      return until(() => (messages().length >= count ? messages() : undefined), `${count} messages`)
    },
    frame: (test) => until(() => frames.find(test), 'the frame'),
    async close() {
      if (socket.readyState === WebSocket.CLOSED) return
      socket.close()
      await once(socket, 'close')
    },
  }
  return client
}

export const newConnectionId = (): string => randomUUID()

export const DID = 'did:key:z6MkhaXgBZDvotDkL5257faiztiGiC2QtKLGpbnnEGta2doK'

/** An addMessage of a small envelope. */
export const message = (connectionId: string, n: number = 0, more: object = {}) => ({
  connectionId,
  recipientDids: [DID],
  payload: { protected: 'e30', ciphertext: `message ${n}` },
  ...more,
})
