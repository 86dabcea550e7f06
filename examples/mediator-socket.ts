import { once } from 'node:events'
import WebSocket from 'ws'
import type { QueuedMessage } from './ledger.js'

const CALL_TIMEOUT_MS = 2_000 // the service answers every call within 1.5 s

/** A mediator, as far as the service sees it: one WebSocket that speaks JSON-RPC 2.0. */
export interface Mediator {
  readonly name: string
  call(method: string, params: object): Promise<any>
  /** Called with the messages of each messagesReceived. */
  onMessages: (messages: QueuedMessage[]) => void
  /** Called with liveSessionReplaced: the wallet is live elsewhere, and nothing more is delivered here. */
  onReplaced: (params: { connectionId: string; sessionId: string }) => void
  /** Gone without a close frame; the service hears of it when TCP does, or when a ping is not answered. */
  lose(): void
  close(): Promise<void>
}

/** What the service answered instead of a result. */
export class Refusal extends Error {
  constructor(
    message: string,
    readonly isRetryable: boolean,
  ) {
    super(message)
  }
}

export async function connect(name: string, url: string): Promise<Mediator> {
  const socket = new WebSocket(url, { perMessageDeflate: false }) // ciphertext does not compress
  const calls = new Map<number, { resolve: (result: any) => void; reject: (error: Error) => void; timer: NodeJS.Timeout }>()
  let lastId = 0
  const mediator: Mediator = {
    name,
    call: (method, params) =>
      new Promise((resolve, reject) => {
        const id = ++lastId
        const timer = setTimeout(() => settle(id)?.reject(new Error(`mediator ${name}: ${method} was not answered`)), CALL_TIMEOUT_MS)
        calls.set(id, { resolve, reject, timer })
        socket.send(JSON.stringify({ jsonrpc: '2.0', id, method, params }))
      }),
    onMessages: () => {},
    onReplaced: () => {},
    lose: () => socket.terminate(),
    async close() {
      socket.close()
      await once(socket, 'close')
    },
  }
  const settle = (id: number) => {
    const call = calls.get(id)
    calls.delete(id)
    clearTimeout(call?.timer)
    return call
  }
  socket.on('message', (data: Buffer) => {
    const { id, method, params, result, error } = JSON.parse(data.toString())
    // Notifications have no id: nothing is to be answered.
    if (method === 'messagesReceived') return mediator.onMessages(params.messages)
    if (method === 'liveSessionReplaced') return mediator.onReplaced(params)
    if (error) settle(id)?.reject(new Refusal(`mediator ${name}: ${error.message}`, error.data?.retryable === true))
    else settle(id)?.resolve(result)
  })
  socket.on('close', () => {
    for (const id of [...calls.keys()]) settle(id)?.reject(new Error(`mediator ${name} lost its socket`))
  })
  try {
    await once(socket, 'open')
  } catch (error) {
    throw new Error(`mediator ${name} cannot connect to ${url}: ${(error as Error).message || (error as { code?: string }).code}`)
  }
  return mediator
}
