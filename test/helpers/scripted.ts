import { once } from 'node:events'
import type { AddressInfo } from 'node:net'
import { WebSocketServer, type WebSocket } from 'ws'

export interface ScriptedFrame {
  id?: number | string
  method: string
  params: any
}

export interface ScriptedService {
  url: string
  /** Every call that came, over all sockets, in order; without pings. */
  calls: ScriptedFrame[]
  sockets: WebSocket[]
  headers: Record<string, unknown>[]
  paths: string[]
  /** Resolves once `test` is true of what came so far. */
  until(test: (calls: ScriptedFrame[]) => boolean): Promise<void>
  notify(method: string, params: object, socket?: WebSocket): void
  answer(frame: ScriptedFrame, reply: object, socket?: WebSocket): void
  close(): void
}

const RESULTS: Record<string, unknown> = { addMessage: 'id', takeFromQueue: [], getAvailableMessageCount: 0, getLiveSession: true }

/**
 * A service that does what the test says: `script` returns the result or error of a call, or nothing when the test answers
 * later or never. What it leaves `undefined` is answered as by a service where all goes well.
 */
export async function startScripted(
  t: { teardown(end: () => unknown): void },
  script: (frame: ScriptedFrame, socket: WebSocket) => { result: unknown } | { error: object } | 'silence' | undefined = () => undefined,
  port = 0,
): Promise<ScriptedService> {
  const server = new WebSocketServer({ port, host: '127.0.0.1' })
  const watchers = new Set<() => void>()
  const service: ScriptedService = {
    url: '',
    calls: [],
    sockets: [],
    headers: [],
    paths: [],
    until: (test) =>
      new Promise((resolve, reject) => {
        const timer = setTimeout(
          () => reject(new Error(`did not come within 10 s; came: ${JSON.stringify(service.calls.slice(-10))}`)),
          10_000,
        )
        const watch = () => {
          if (!test(service.calls)) return
          clearTimeout(timer)
          watchers.delete(watch)
          resolve()
        }
        watchers.add(watch)
        watch()
      }),
    notify: (method, params, socket = service.sockets.at(-1)) => socket!.send(JSON.stringify({ jsonrpc: '2.0', method, params })),
    answer: ({ id }, reply, socket = service.sockets.at(-1)) => socket!.send(JSON.stringify({ jsonrpc: '2.0', id, ...reply })),
    close() {
      for (const socket of server.clients) socket.terminate()
      server.close()
    },
  }
  server.on('connection', (socket, request) => {
    service.sockets.push(socket)
    service.headers.push(request.headers)
    service.paths.push(request.url!)
    socket.on('error', () => {})
    socket.on('message', (data: Buffer) => {
      const frame = JSON.parse(data.toString()) as ScriptedFrame
      const scripted = script(frame, socket)
      if (frame.method !== 'ping') service.calls.push(frame)
      if (scripted !== 'silence') {
        const usual =
          frame.method === 'ping'
            ? 'pong'
            : frame.method in RESULTS
              ? RESULTS[frame.method]
              : frame.method.endsWith('Session')
                ? true
                : null
        service.answer(frame, scripted ?? { result: usual }, socket)
      }
      for (const watch of [...watchers]) watch()
    })
  })
  await once(server, 'listening')
  t.teardown(() => service.close())
  service.url = `ws://127.0.0.1:${(server.address() as AddressInfo).port}/ws`
  return service
}
