import { once } from 'node:events'
import { setTimeout as sleep } from 'node:timers/promises'
import WebSocket from 'ws'
import { DID } from '../helpers/service.js'
import type { Ledger } from './ledger.js'

/** Mediators and senders that live through faults as real ones do: they connect again, somewhere else, and go on. */

const CALL_TIMEOUT_MS = 2_000 // what the existing client gives a call
const ACK_AFTER_MS = 20
const TAKE = 10

interface Client {
  call(method: string, params: object): Promise<any>
  closed: Promise<number>
  socket: WebSocket
}

interface Received {
  id: string
  encryptedMessage: { text: string }
}

/** Failures of calls, by the code of their error; `lost` when the socket was lost, `silent` when none came within 2 s. */
export type Failures = Record<string, number>

async function open(url: string, failures: Failures, onEvent: (method: string, params: any) => void = () => {}): Promise<Client> {
  const socket = new WebSocket(url, { perMessageDeflate: false, handshakeTimeout: 2_000 })
  const pending = new Map<number, { resolve(result: unknown): void; fail(code: string): void }>()
  let calls = 0
  const closed = new Promise<number>((resolve) => socket.on('close', resolve))
  socket.on('error', () => {})
  socket.on('message', (data: Buffer) => {
    const frame = JSON.parse(data.toString())
    if (frame.method) return onEvent(frame.method, frame.params)
    const call = pending.get(frame.id)
    pending.delete(frame.id)
    if (frame.error) call?.fail(frame.error.data.code)
    else call?.resolve(frame.result)
  })
  void closed.then(() => {
    for (const call of pending.values()) call.fail('lost')
  })
  await Promise.race([once(socket, 'open'), closed.then((code) => Promise.reject(new Error(`closed with ${code}`)))])
  return {
    socket,
    closed,
    call: (method, params) =>
      new Promise((resolve, reject) => {
        const id = ++calls
        const fail = (code: string) => {
          clearTimeout(timer)
          pending.delete(id)
          failures[code] = (failures[code] ?? 0) + 1
          reject(new Error(`${method}: ${code}`))
        }
        const timer = setTimeout(() => fail('silent'), CALL_TIMEOUT_MS)
        pending.set(id, {
          fail,
          resolve(result) {
            clearTimeout(timer)
            resolve(result)
          },
        })
        if (socket.readyState !== WebSocket.OPEN) fail('lost')
        else socket.send(JSON.stringify({ jsonrpc: '2.0', id, method, params }))
      }),
  }
}

export interface Mediator {
  /** Resolves when all its live sessions have been opened once. */
  ready: Promise<void>
  failures: Failures
  /** Close codes of the sockets that it lost. */
  closes: number[]
  stop(): Promise<void>
}

/** Holds a live session for each connection on one socket, acks what it gets after 20 ms, and takes what it missed. */
export function startMediator({ urls, connections, ledger }: { urls: string[]; connections: string[]; ledger: Ledger }): Mediator {
  const failures: Failures = {}
  const closes: number[] = []
  let client: Client | undefined
  let stopped = false
  let isReady = () => {}
  const ready = new Promise<void>((resolve) => (isReady = resolve))
  void live()

  return {
    ready,
    failures,
    closes,
    async stop() {
      stopped = true
      client?.socket.terminate()
      await client?.closed
    },
  }

  async function live(): Promise<void> {
    for (let turn = 0; !stopped; turn++) {
      try {
        client = await open(urls[turn % urls.length]!, failures, onEvent)
      } catch {
        await sleep(100)
        continue
      }
      const mine = client
      await Promise.all(connections.map((connectionId) => begin(mine, connectionId)))
      if (mine.socket.readyState === WebSocket.OPEN) isReady()
      closes.push(await mine.closed)
    }
  }

  /** Credo's order; then what waits, until nothing does. */
  async function begin(mine: Client, connectionId: string): Promise<void> {
    while (mine.socket.readyState === WebSocket.OPEN && !stopped) {
      try {
        const [, , first] = await Promise.all([
          mine.call('removeLiveSession', { connectionId }),
          mine.call('addLiveSession', { connectionId, sessionId: 's' }),
          mine.call('getAvailableMessageCount', { connectionId }),
        ])
        let waiting = first
        while (waiting > 0) {
          const messages: Received[] = await mine.call('takeFromQueue', { connectionId, limit: Math.min(TAKE, waiting) })
          await take(mine, connectionId, messages, 'take')
          waiting = await mine.call('getAvailableMessageCount', { connectionId })
        }
        return
      } catch {
        await sleep(100)
      }
    }
  }

  function onEvent(method: string, params: { connectionId: string; messages: Received[] }): void {
    const mine = client
    if (method !== 'messagesReceived' || !mine) return
    for (const { encryptedMessage } of params.messages) ledger.received(params.connectionId, encryptedMessage.text, 'live')
    setTimeout(() => void ack(mine, params.connectionId, params.messages), ACK_AFTER_MS)
  }

  async function take(mine: Client, connectionId: string, messages: Received[], via: 'take' | 'live'): Promise<void> {
    for (const { encryptedMessage } of messages) ledger.received(connectionId, encryptedMessage.text, via)
    await ack(mine, connectionId, messages)
  }

  async function ack(mine: Client, connectionId: string, messages: Received[]): Promise<void> {
    // An ack is repeated until it is answered or the socket is lost: removing is idempotent.
    while (mine.socket.readyState === WebSocket.OPEN) {
      try {
        await mine.call('removeMessages', { connectionId, messageIds: messages.map(({ id }) => id) })
        return ledger.acked(messages.map(({ encryptedMessage }) => encryptedMessage.text))
      } catch {
        await sleep(100)
      }
    }
  }
}

export interface Sender {
  failures: Failures
  stop(): Promise<void>
}

/** Adds `perSecond` messages, to one connection after the other, each add of a connection after the answer of the one before. */
export function startSender({
  urls,
  connections,
  ledger,
  perSecond,
  bytes = 2_000,
}: {
  urls: string[]
  connections: string[]
  ledger: Ledger
  perSecond: number
  bytes?: number
}): Sender {
  const failures: Failures = {}
  const padding = 'x'.repeat(bytes)
  let stopped = false
  let client: Promise<Client> | undefined
  let turn = 0
  const busy = new Set<string>()
  const running = new Set<Promise<void>>()

  const connected = () => {
    client ??= open(urls[turn++ % urls.length]!, failures).then((opened) => {
      void opened.closed.then(() => (client = undefined))
      return opened
    })
    return client
  }
  const add = async (connectionId: string) => {
    busy.add(connectionId)
    try {
      const { call } = await connected()
      const text = ledger.adding(connectionId)
      await call('addMessage', { connectionId, recipientDids: [DID], payload: { text, padding } })
      ledger.added(text)
    } catch {
      if (client) await client.catch(() => (client = undefined))
    } finally {
      busy.delete(connectionId)
    }
  }
  const started = performance.now()
  let sent = 0
  const timer = setInterval(() => {
    for (; !stopped && sent < ((performance.now() - started) / 1_000) * perSecond; sent++) {
      const connectionId = connections[sent % connections.length]!
      if (busy.has(connectionId)) continue
      const adding = add(connectionId)
      running.add(adding)
      void adding.finally(() => running.delete(adding))
    }
  }, 5)

  return {
    failures,
    async stop() {
      stopped = true
      clearInterval(timer)
      await Promise.all(running)
      await client?.then(
        ({ socket }) => socket.terminate(),
        () => {},
      )
    },
  }
}

/** Waits until everything acknowledged has been received. @throws Error naming what is missing when that takes longer */
export async function untilAllReceived(ledger: Ledger, withinMs: number): Promise<void> {
  for (const deadline = performance.now() + withinMs; ledger.outstanding().length > 0; await sleep(20)) {
    if (performance.now() > deadline) {
      const missing = ledger.outstanding()
      throw new Error(`${missing.length} messages were not received within ${withinMs} ms: ${missing.slice(0, 5).join(', ')}`)
    }
  }
}
