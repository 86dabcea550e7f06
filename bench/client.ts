import { Worker } from 'node:worker_threads'
import { percentile } from './measure.js'
import { FIRST_CALL, openWire, textFrame, type Template } from './wire.js'

/** Calls of the load generator over one socket. Answers come to callbacks: a promise for each would cost more than the frame. */

export interface AnsweredError {
  message: string
  data: { code: string; retryable: boolean }
}

export type OnAnswer = (result: any, error: AnsweredError | undefined) => void

export interface Delivered {
  id: string
  encryptedMessage: any
}

export interface Client {
  call(template: Template, connection: number, n: number, onAnswer: OnAnswer): void
  callText(method: string, params: object, onAnswer: OnAnswer): void
  /** @throws Error when it is answered with one, or when the socket closes */
  ask(method: string, params: object): Promise<any>
  isOpen(): boolean
  close(): Promise<void>
}

export interface ClientOptions {
  onMessages?(connectionId: string, messages: Delivered[]): void
  onClose?(code: number): void
  localAddress?: string
}

export async function openClient(url: string, options: ClientOptions = {}): Promise<Client> {
  const pending = new Map<number, OnAnswer>()
  let calls = FIRST_CALL
  const wire = await openWire(url, {
    localAddress: options.localAddress,
    onText(text) {
      const frame = JSON.parse(text)
      if (frame.method === 'messagesReceived') return options.onMessages?.(frame.params.connectionId, frame.params.messages)
      const onAnswer = pending.get(frame.id)
      if (!onAnswer) {
        if (frame.method) return // liveSessionReplaced
        throw new Error(`an answer to no call: ${text.slice(0, 300)}`)
      }
      pending.delete(frame.id)
      onAnswer(frame.result, frame.error)
    },
    onClose(code) {
      const error = { message: `the socket was closed with ${code}`, data: { code: 'closed', retryable: false } }
      for (const onAnswer of pending.values()) onAnswer(undefined, error)
      pending.clear()
      options.onClose?.(code)
    },
  })
  const client: Client = {
    call(template, connection, n, onAnswer) {
      pending.set(++calls, onAnswer)
      wire.send(template(calls, connection, n))
    },
    callText(method, params, onAnswer) {
      pending.set(++calls, onAnswer)
      wire.send(textFrame(JSON.stringify({ jsonrpc: '2.0', id: calls, method, params })))
    },
    ask: (method, params) =>
      new Promise((resolve, reject) =>
        client.callText(method, params, (result, error) => (error ? reject(new Error(`${method}: ${error.message}`)) : resolve(result))),
      ),
    isOpen: wire.isOpen,
    close: wire.close,
  }
  return client
}

/** Does `work` for each item, `width` at a time, in their order. */
export async function inParallel<Item>(items: readonly Item[], width: number, work: (item: Item) => Promise<unknown>): Promise<void> {
  let next = 0
  const worker = async () => {
    while (next < items.length) await work(items[next++]!)
  }
  await Promise.all(Array.from({ length: width }, worker))
}

/** All calls as fast as they are answered, `inFlight` at a time on each client. Resolves when the last one is done. */
export async function closedLoop(
  clients: readonly Client[],
  inFlight: number,
  total: number,
  start: (client: Client, socket: number, k: number, done: () => void) => void,
): Promise<void> {
  await Promise.all(
    clients.map(
      (client, socket) =>
        new Promise<void>((resolve) => {
          const share = Math.floor(total / clients.length) + (socket < total % clients.length ? 1 : 0)
          let started = 0
          let ended = 0
          const next = () => {
            if (started < share) start(client, socket, started++, done)
          }
          const done = () => {
            if (++ended === share) resolve()
            else next()
          }
          if (share === 0) resolve()
          for (let i = 0; i < inFlight; i++) next()
        }),
    ),
  )
}

/**
 * Starts the k-th call at k / perSecond, however slow the answers are. `dueAt` is when it should have been sent, and latency
 * counts from there: a stall is then paid by every call that it delayed, not by one (no coordinated omission).
 * @returns the p99 of how late the calls left, in ms: the generator's own part of the latencies
 */
export async function openLoop(perSecond: number, total: number, start: (k: number, dueAt: number) => void): Promise<number> {
  const stepMs = Math.max(0.25, 1_000 / perSecond)
  const leadMs = stepMs < 1 ? 0 : LEAD_MS
  const late: number[] = []
  let k = 0
  const stop = await tick(stepMs, leadMs, (startedAt, finish) => {
    for (; k < total; k++) {
      const dueAt = startedAt + (k * 1_000) / perSecond
      let now = performance.now()
      if (dueAt > now + Math.max(EARLY_MS, leadMs)) return
      while (now < dueAt) now = performance.now()
      late.push(now - dueAt)
      start(k, dueAt)
    }
    finish()
  })
  await stop()
  return percentile(late, 0.99)
}

/** A tick that comes so much before its time is taken for it, and does not wait for the next. */
const EARLY_MS = 0.02
/**
 * From the thread's waking to this one's takes 0.15 to 0.2 ms, an eighth of what an add takes when nothing else happens. So at rates that leave
 * the time for it the tick comes before its time, and the rest is waited for without sleeping.
 */
const LEAD_MS = 0.3

/**
 * Timers of Node have whole milliseconds, as much as a commit takes; a thread that waits on a condition is late by 0.05 ms. Both threads count
 * from the same moment of the same clock: counted from the first message, which came late, all ticks were early, and each call one tick late.
 */
async function tick(
  stepMs: number,
  leadMs: number,
  onTick: (startedAt: number, finish: () => void) => void,
): Promise<() => Promise<unknown>> {
  const worker = new Worker(
    `const { parentPort, workerData: { stepMs, leadMs } } = require('node:worker_threads')
     const never = new Int32Array(new SharedArrayBuffer(4))
     const now = () => Number(process.hrtime.bigint()) / 1e6
     const startedAt = now()
     for (let next = startedAt; ; next += stepMs) {
       const waitMs = next - leadMs - now()
       if (waitMs > 0) Atomics.wait(never, 0, 0, waitMs)
       parentPort.postMessage(startedAt)
     }`,
    { eval: true, workerData: { stepMs, leadMs }, execArgv: [] },
  )
  const offset = performance.now() - Number(process.hrtime.bigint()) / 1e6
  await new Promise<void>((finish, fail) => {
    worker.on('error', fail)
    worker.on('message', (startedAt: number) => onTick(startedAt + offset, finish))
  })
  return () => worker.terminate()
}
