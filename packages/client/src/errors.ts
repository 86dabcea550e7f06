/**
 * Failures that this client finds by itself; beside them every name of the service's own table may come (`quota_exceeded`,
 * `invalid_params`, …).
 *
 *   timeout          not answered within `callTimeoutMs`
 *   connection_lost  the socket was lost before the answer, and the call is not one that may be repeated
 *   queue_full       offline, and as many calls wait as may wait
 *   closed           `close()` was called
 */
export type ClientErrorCode = 'timeout' | 'connection_lost' | 'queue_full' | 'closed'

export class MessagePickupError extends Error {
  override readonly name = 'MessagePickupError'
  readonly code: ClientErrorCode | (string & {})
  /** Whether the same call may succeed later. */
  readonly retryable: boolean
  /** The call may have taken effect although it failed. */
  readonly isOutcomeUnknown: boolean
  /** The parameter that was wrong, where the service names one. */
  readonly field: string | undefined
  /** The limit that was passed, where the service names one. */
  readonly limit: number | undefined
  /** Of JSON-RPC, when the service answered it. */
  readonly rpcCode: number | undefined

  constructor(
    code: ClientErrorCode | (string & {}),
    message: string,
    {
      retryable = false,
      isOutcomeUnknown = false,
      field,
      limit,
      rpcCode,
      cause,
    }: { retryable?: boolean; isOutcomeUnknown?: boolean; field?: string; limit?: number; rpcCode?: number; cause?: unknown } = {},
  ) {
    super(message)
    if (cause !== undefined) this.cause = cause
    this.code = code
    this.retryable = retryable
    this.isOutcomeUnknown = isOutcomeUnknown
    this.field = field
    this.limit = limit
    this.rpcCode = rpcCode
  }
}

/** The `error` of an answer, from whatever speaks JSON-RPC at the other end. */
export function fromAnswer(error: unknown): MessagePickupError {
  const { code: rpcCode, message, data } = (error ?? {}) as { code?: unknown; message?: unknown; data?: unknown }
  const { code, retryable, field, limit } = (typeof data === 'object' && data !== null ? data : {}) as Record<string, unknown>
  return new MessagePickupError(
    typeof code === 'string' ? code : 'internal_error',
    typeof message === 'string' ? message : 'The service failed.',
    {
      retryable: retryable === true,
      isOutcomeUnknown: code === 'timeout' || code === 'unavailable' || code === 'internal_error' || typeof code !== 'string',
      ...(typeof field === 'string' ? { field } : {}),
      ...(typeof limit === 'number' ? { limit } : {}),
      ...(typeof rpcCode === 'number' ? { rpcCode } : {}),
    },
  )
}
