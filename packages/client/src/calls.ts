import type { MethodName } from './contract.js'
import { fromAnswer, MessagePickupError } from './errors.js'
import { mayRepeat } from './repeat.js'

/**
 * Calls in, answers out, whatever happens to the socket between.
 *
 * A call is
 *   waiting   for a socket
 *   sent      on the socket that is open now; when that is lost it waits again, or fails if it may not be repeated
 *   resting   after "not now", until it is sent again
 * and is settled by its answer or its deadline, whichever comes first. All have one order, that of the calls.
 */

const REST_MS = 50
const MAX_REST_MS = 1_500

/** How long to wait before a try, in milliseconds: longer with each, and never all clients at the same moment. */
export const restMs = (tries: number): number => Math.random() * Math.min(MAX_REST_MS, REST_MS * 2 ** tries)

export interface Call {
  readonly method: MethodName
  readonly params: object
  readonly text: string
  /** Asked before it is sent; when it is not wanted any more, it is answered with `true` instead. */
  readonly isWanted: () => boolean
  /** On the socket that is open now or not at all. */
  readonly isOnce: boolean
  readonly answered: Promise<unknown>
  state: 'new' | 'waiting' | 'sent' | 'resting' | 'settled'
  tries: number
  /** On some socket, once. */
  wasSent: boolean
  succeed(result: unknown): void
  fail(error: MessagePickupError): void
}

export interface CallsOptions {
  callTimeoutMs: number
  maxQueuedCalls: number
  maxQueuedChars: number
  wire: {
    start(): void
    send(text: string): void
    readonly bufferedBytes: number
    readonly lastFailure: string | undefined
  }
  /** The socket is open, and takes calls in their order. */
  isReady(): boolean
}

export function createCalls({ callTimeoutMs, maxQueuedCalls, maxQueuedChars, wire, isReady }: CallsOptions) {
  const unsettled = new Map<number, Call>()
  let calls = 0
  let waiting = 0
  let waitingChars = 0

  return {
    /** How many there have been. */
    count: () => calls,
    /** Something was sent and not answered. */
    isAnswerDue: () => unsettled.size > waiting,
    ask,
    askOnce,
    send,
    sendWaiting,
    onAnswer,
    onLost,
    allSettled,
  }

  function ask(method: MethodName, params: object, isWanted = () => true): Call {
    const call = createCall(method, params, isWanted, false)
    const chars = waitingChars + call.text.length + wire.bufferedBytes
    if ((!isReady() && waiting >= maxQueuedCalls) || chars > maxQueuedChars) {
      call.fail(
        new MessagePickupError('queue_full', `${waiting} calls wait already (${wire.lastFailure ?? 'not connected'}).`, {
          retryable: true,
          limit: chars > maxQueuedChars ? maxQueuedChars : maxQueuedCalls,
        }),
      )
      return call
    }
    wire.start()
    move(call, 'waiting')
    if (isReady()) send(call)
    return call
  }

  /** On the socket that is open now, before all that waits, and not again. */
  function askOnce(method: MethodName, params: object): Promise<unknown> {
    const call = createCall(method, params, () => true, true)
    send(call)
    return call.answered
  }

  function createCall(method: MethodName, params: object, isWanted: () => boolean, isOnce: boolean): Call {
    const id = ++calls
    let settle: { resolve(result: unknown): void; reject(error: MessagePickupError): void }
    const answered = new Promise<unknown>((resolve, reject) => (settle = { resolve, reject }))
    const timer = setTimeout(() => {
      const { wasSent } = call
      const why = wasSent ? 'It may have taken effect.' : `It was never sent (${wire.lastFailure ?? 'not connected'}).`
      call.fail(
        new MessagePickupError('timeout', `${method}: not answered within ${callTimeoutMs} ms. ${why}`, {
          retryable: true,
          isOutcomeUnknown: wasSent,
        }),
      )
    }, callTimeoutMs)
    const done = () => {
      clearTimeout(timer)
      move(call, 'settled')
      unsettled.delete(id)
    }
    const call: Call = {
      method,
      params,
      text: JSON.stringify({ jsonrpc: '2.0', id, method, params }),
      isWanted,
      isOnce,
      answered,
      state: 'new',
      tries: 0,
      wasSent: false,
      succeed(result) {
        done()
        settle.resolve(result)
      },
      fail(error) {
        done()
        settle.reject(error)
      },
    }
    unsettled.set(id, call)
    return call
  }

  /** The only place that changes a call's state, because what waits is counted. */
  function move(call: Call, state: Call['state']): void {
    if (call.state === 'waiting') {
      waiting--
      waitingChars -= call.text.length
    }
    call.state = state
    if (state === 'waiting') {
      waiting++
      waitingChars += call.text.length
    }
  }

  function send(call: Call): void {
    if (!call.isWanted()) return call.succeed(true)
    move(call, 'sent')
    call.tries++
    call.wasSent = true
    wire.send(call.text)
  }

  /** Acks, then the rest. @returns the answers to the acks */
  function sendWaiting(): Promise<unknown>[] {
    const acks: Promise<unknown>[] = []
    for (const wanted of ['acks', 'rest']) {
      for (const call of unsettled.values()) {
        const isAck = call.method === 'removeMessages'
        if (call.state !== 'waiting' || isAck !== (wanted === 'acks')) continue
        if (isAck) acks.push(call.answered)
        send(call)
      }
    }
    return acks
  }

  function onAnswer(id: unknown, result: unknown, error: unknown): void {
    const call = typeof id === 'number' ? unsettled.get(id) : undefined
    if (call?.state !== 'sent') return // its deadline was faster
    if (error === undefined || error === null) return call.succeed(result)
    const failure = fromAnswer(error)
    if (!failure.retryable || call.isOnce || !mayRepeat(call.method, call.params, failure.code)) return call.fail(failure)
    move(call, 'resting')
    setTimeout(() => {
      if (call.state !== 'resting') return
      move(call, 'waiting')
      if (isReady()) send(call)
    }, restMs(call.tries))
  }

  /** The socket is gone, and with it the answers to what was sent. */
  function onLost(): void {
    for (const call of unsettled.values()) if (call.state === 'sent') lost(call)
  }

  function lost(call: Call): void {
    if (!call.isOnce && mayRepeat(call.method, call.params)) return move(call, 'waiting')
    call.fail(
      new MessagePickupError('connection_lost', `${call.method}: the socket was lost before the answer. It may have taken effect.`, {
        isOutcomeUnknown: true,
      }),
    )
  }

  /** Resolves when there are no calls, those that come meanwhile included. */
  async function allSettled(): Promise<void> {
    while (unsettled.size > 0) await Promise.allSettled([...unsettled.values()].map(({ answered }) => answered))
  }
}
