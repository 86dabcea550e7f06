import { once } from 'node:events'
import WebSocket from 'ws'

export interface Delivered {
  id: string
  encryptedMessage: any
}

/** A client that costs little: it keeps nothing but the calls under way. */
export interface BenchSocket {
  call(method: string, params: object): Promise<any>
  close(): Promise<void>
}

export async function openSocket(
  url: string,
  onMessages: (connectionId: string, messages: Delivered[]) => void = () => {},
): Promise<BenchSocket> {
  const socket = new WebSocket(url, { perMessageDeflate: false })
  const pending = new Map<number, { method: string; at: number; resolve: (result: unknown) => void; reject: (error: Error) => void }>()
  let calls = 0
  socket.on('message', (data: Buffer) => {
    const frame = JSON.parse(data.toString())
    if (frame.method === 'messagesReceived') return onMessages(frame.params.connectionId, frame.params.messages)
    const call = pending.get(frame.id)
    pending.delete(frame.id)
    if (frame.error && call) {
      const { message, data } = frame.error
      call.reject(new AnsweredError(`${call.method} after ${Math.round(performance.now() - call.at)} ms: ${message}`, data.retryable))
    } else call?.resolve(frame.result)
  })
  socket.on('close', (code) => {
    for (const { reject } of pending.values()) reject(new Error(`socket closed with ${code}`))
  })
  await once(socket, 'open')
  return {
    call: (method, params) =>
      new Promise((resolve, reject) => {
        const id = ++calls
        pending.set(id, { method, at: performance.now(), resolve, reject })
        socket.send(JSON.stringify({ jsonrpc: '2.0', id, method, params }))
      }),
    async close() {
      if (socket.readyState === WebSocket.CLOSED) return
      socket.close()
      await once(socket, 'close')
    },
  }
}

export class AnsweredError extends Error {
  constructor(
    text: string,
    readonly retryable: boolean,
  ) {
    super(text)
  }
}

export const isRetryable = (error: unknown): boolean => error instanceof AnsweredError && error.retryable

/** Does `work` for each item, `width` at a time, in their order. */
export async function inParallel<Item>(items: readonly Item[], width: number, work: (item: Item) => Promise<unknown>): Promise<void> {
  let next = 0
  const worker = async () => {
    while (next < items.length) await work(items[next++]!)
  }
  await Promise.all(Array.from({ length: width }, worker))
}
