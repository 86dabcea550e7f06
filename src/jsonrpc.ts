import type { ArrivalOrder } from './arrival-order.js'
import type { CallResult } from './calls.js'
import { CallError, toCallError } from './errors.js'
import { parseJson, type CallTexts, type JsonBytes } from './json.js'
import type { Caller } from './pickup.js'

/**
 * JSON-RPC 2.0: text in, text out. It knows methods and no transport.
 * @see https://www.jsonrpc.org/specification
 */

export interface Method {
  run(params: unknown, payload: JsonBytes | undefined, caller: Caller, order?: ArrivalOrder): Promise<CallResult>
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

/** `onCalls` is told how many calls are in the frame, before this returns. */
export type JsonRpc = (
  frame: Buffer,
  caller: Caller,
  order?: ArrivalOrder,
  onCalls?: (calls: number) => void,
) => Promise<string | undefined>

/** @returns a function that answers one frame; `undefined` when nothing is to be answered (notifications). */
export function createJsonRpc({ methods, maxDepth, maxBatch, onError, dialect }: JsonRpcOptions): JsonRpc {
  return function answer(frame, caller, order, onCalls) {
    let parsed
    try {
      parsed = parseJson(frame, maxDepth, 'rpc')
    } catch (error) {
      return Promise.resolve(failure('null', error))
    }
    const { value, texts } = parsed
    return Array.isArray(value) ? answerAll(value, texts, caller, order, onCalls) : answerOne(value, texts[0], caller, order)
  }

  /** [JSON-RPC 6] Batch. */
  async function answerAll(
    value: unknown[],
    texts: readonly CallTexts[],
    caller: Caller,
    order?: ArrivalOrder,
    onCalls?: (calls: number) => void,
  ): Promise<string | undefined> {
    if (value.length === 0) return failure('null', new CallError('invalid_request', 'A batch must contain at least one call.'))
    if (value.length > maxBatch) {
      return failure(
        'null',
        new CallError('batch_too_long', `A batch must contain at most ${maxBatch} calls, it has ${value.length}.`, { limit: maxBatch }),
      )
    }
    onCalls?.(value.length)
    const answers = await Promise.all(value.map((call, i) => answerOne(call, texts[i], caller, order)))
    const replies = answers.filter((reply) => reply !== undefined)
    return replies.length > 0 ? `[${replies.join(',')}]` : undefined
  }

  function answerOne(request: unknown, texts: CallTexts | undefined, caller: Caller, order?: ArrivalOrder): Promise<string | undefined> {
    const id = idOf(request, texts?.id)
    const problem = problemOf(request)
    if (problem) return Promise.resolve(failure(id ?? 'null', new CallError('invalid_request', `Invalid request: ${problem}.`)))
    const { method, params = {} } = request as { method: string; params?: unknown }
    const isNotification = id === undefined // [JSON-RPC 4.1]
    const fail = (error: unknown) => {
      if (toCallError(error).code === 'internal_error') onError(error, method)
      return isNotification ? undefined : failure(id, error)
    }
    const found = methods.get(method)
    if (!found) {
      const unknown = new CallError('method_not_found', `Method not found: ${method.slice(0, 64)}. rpc.discover lists what there is.`)
      return Promise.resolve(fail(unknown))
    }
    // Not an async function: it is on the path of every call, docs/decisions/0008.
    return found
      .run(params, texts?.payload, caller, order)
      .then(
        ({ value, text }) => (isNotification ? undefined : `{"jsonrpc":"2.0","result":${dialect?.(method, value) ?? text},"id":${id}}`),
        fail,
      )
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
