import type { ArrivalOrder } from './arrival-order.js'
import type { CallResult, Ended, Run } from './calls.js'
import { CallError, toCallError } from './errors.js'
import { parseJson, type CallTexts } from './json.js'
import type { Caller } from './pickup.js'

/**
 * JSON-RPC 2.0: text in, text out. It knows methods and no transport.
 * @see https://www.jsonrpc.org/specification
 */

export interface Method {
  run: Run
}

export interface JsonRpcOptions {
  methods: ReadonlyMap<string, Method>
  maxDepth: number
  maxBatch: number
  /** Called with every error that is not the caller's, before the caller gets a text without its details. */
  onError: (error: unknown, method: string) => void
  /** Rewrites a result for clients that speak another dialect. `undefined` leaves it. */
  dialect?: (method: string, value: unknown) => string | undefined
}

/** Answers one frame: once, and not before this returns. `onCalls` is told how many calls are in a batch, before this returns. */
export type JsonRpc = (frame: Buffer, caller: Caller, reply: Reply, onCalls: (calls: number) => void, order?: ArrivalOrder) => void

/** `undefined` when nothing is to be answered (notifications). `calls` is how many there were, as `onCalls` was told; otherwise 1. */
export type Reply = (text: string | undefined, calls: number) => void

export function createJsonRpc({ methods, maxDepth, maxBatch, onError, dialect }: JsonRpcOptions): JsonRpc {
  return function answer(frame, caller, reply, onCalls, order) {
    let parsed
    try {
      parsed = parseJson(frame, maxDepth, 'rpc')
    } catch (error) {
      return process.nextTick(reply, failure('null', error), 1)
    }
    const { value, texts } = parsed
    if (Array.isArray(value)) answerAll(value, texts, caller, reply, onCalls, order)
    else answerOne(value, texts[0], caller, reply, order)
  }

  /** [JSON-RPC 6] Batch. */
  function answerAll(
    value: unknown[],
    texts: readonly CallTexts[],
    caller: Caller,
    reply: Reply,
    onCalls: (calls: number) => void,
    order?: ArrivalOrder,
  ): void {
    const { length } = value
    const refuse = (error: CallError) => process.nextTick(reply, failure('null', error), 1)
    if (length === 0) return refuse(new CallError('invalid_request', 'A batch must contain at least one call.'))
    if (length > maxBatch) {
      return refuse(
        new CallError('batch_too_long', `A batch must contain at most ${maxBatch} calls, it has ${length}.`, { limit: maxBatch }),
      )
    }
    onCalls(length)
    const answers = new Array<string | undefined>(length)
    let missing = length
    value.forEach((call, i) => {
      const answered: Reply = (text) => {
        answers[i] = text
        if (--missing > 0) return
        reply(joined(answers), length)
      }
      answerOne(call, texts[i], caller, answered, order)
    })
  }

  function success(id: string, method: string, { value, text }: CallResult): string {
    try {
      return `{"jsonrpc":"2.0","result":${dialect?.(method, value) ?? text},"id":${id}}`
    } catch (error) {
      onError(error, method)
      return failure(id, error)
    }
  }

  function joined(answers: readonly (string | undefined)[]): string | undefined {
    const replies = answers.filter((answer) => answer !== undefined)
    try {
      return replies.length > 0 ? `[${replies.join(',')}]` : undefined
    } catch (error) {
      onError(error, 'batch') // longer than a string may be
      return failure('null', error)
    }
  }

  function answerOne(request: unknown, texts: CallTexts | undefined, caller: Caller, reply: Reply, order?: ArrivalOrder): void {
    const id = idOf(request, texts?.id)
    const problem = problemOf(request)
    if (problem) return process.nextTick(reply, failure(id ?? 'null', new CallError('invalid_request', `Invalid request: ${problem}.`)), 1)
    const { method, params = {} } = request as { method: string; params?: unknown }
    const isNotification = id === undefined // [JSON-RPC 4.1]
    const ended: Ended = (error, result) => {
      if (!result && toCallError(error).code === 'internal_error') onError(error, method)
      if (isNotification) reply(undefined, 1)
      else if (!result) reply(failure(id, error), 1)
      else reply(success(id, method, result), 1)
    }
    const found = methods.get(method)
    if (found) return found.run(params, texts?.payload, caller, ended, order)
    const unknown = `Method not found: ${method.slice(0, 64)}. rpc.discover lists what there is.`
    process.nextTick(ended, new CallError('method_not_found', unknown))
  }
}

/** [JSON-RPC 4] */
function problemOf(request: unknown): string | undefined {
  if (typeof request !== 'object' || request === null || Array.isArray(request)) return 'a call must be an object'
  const { jsonrpc, id, method, params } = request as Record<string, unknown>
  if (jsonrpc !== '2.0') return 'jsonrpc must be "2.0"'
  if (typeof method !== 'string') return 'method must be a string'
  if (id !== undefined && id !== null && typeof id !== 'string' && typeof id !== 'number') return 'id must be a string, a number or null'
  if (params !== undefined && (typeof params !== 'object' || params === null)) return 'params must be an object or an array'
  return undefined
}

/** [JSON-RPC 5] The text of the id, as it came; null when it could not be detected, undefined when there is none. */
function idOf(request: unknown, idText: string | undefined): string | undefined {
  if (typeof request !== 'object' || request === null || !('id' in request)) return undefined
  const { id } = request
  if (typeof id === 'number') return idText ?? JSON.stringify(id)
  return typeof id === 'string' ? JSON.stringify(id) : 'null'
}

/** An error as a frame of its own; `id` is JSON text. */
export function failure(id: string, error: unknown): string {
  return `{"jsonrpc":"2.0","error":${JSON.stringify(toCallError(error).toObject())},"id":${id}}`
}
