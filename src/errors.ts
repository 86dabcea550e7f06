/**
 * Every failure a caller can see, in one table: its stable name, its JSON-RPC code, its HTTP status, and whether the
 * same call may succeed when it is made again. Both transports answer the same object:
 * `{ code, message, data: { code: <name>, retryable, ... } }`.
 */
export const errorTable = {
  parse_error: { code: -32700, status: 400, retryable: false }, // [JSON-RPC 5.1]
  invalid_request: { code: -32600, status: 400, retryable: false }, // [JSON-RPC 5.1]
  too_deep: { code: -32600, status: 400, retryable: false },
  batch_too_long: { code: -32600, status: 400, retryable: false },
  method_not_found: { code: -32601, status: 404, retryable: false }, // [JSON-RPC 5.1]
  invalid_params: { code: -32602, status: 400, retryable: false }, // [JSON-RPC 5.1]
  internal_error: { code: -32603, status: 500, retryable: false }, // [JSON-RPC 5.1]
  // Refused for now, not for good: it succeeds once the mediatee has picked up mail. Retrying at once is pointless.
  quota_exceeded: { code: -32001, status: 507, retryable: false },
  // Not answered in time. What it asked may still take effect: repeat addMessage with the same idempotencyKey.
  timeout: { code: -32002, status: 504, retryable: true },
  unavailable: { code: -32003, status: 503, retryable: true },
  overloaded: { code: -32004, status: 503, retryable: true },
  shutting_down: { code: -32005, status: 503, retryable: true },
  payload_too_large: { code: -32006, status: 413, retryable: false },
  unauthorized: { code: -32007, status: 401, retryable: false },
  forbidden: { code: -32008, status: 403, retryable: false },
  rate_limited: { code: -32009, status: 429, retryable: true },
} as const

export type ErrorName = keyof typeof errorTable

/** What may stand beside the name in `data`: the field that was wrong and the limit that was passed. */
export interface ErrorDetails {
  field?: string
  limit?: number
}

export interface ErrorObject {
  code: number
  message: string
  data: { code: ErrorName; retryable: boolean } & ErrorDetails
}

/** An error meant for the caller. Its message goes out as it is, so it must not contain anything secret. */
export class CallError extends Error {
  override readonly name = 'CallError'
  readonly code: ErrorName
  readonly details: ErrorDetails

  constructor(code: ErrorName, message: string, details: ErrorDetails = {}, cause?: unknown) {
    super(message, cause === undefined ? undefined : { cause })
    this.code = code
    this.details = details
  }

  get status(): number {
    return errorTable[this.code].status
  }

  toObject(): ErrorObject {
    const { code, retryable } = errorTable[this.code]
    return { code, message: this.message, data: { code: this.code, retryable, ...this.details } }
  }
}

/** What the caller is told about any failure. Everything that is not a CallError stays in the log. */
export function toCallError(error: unknown): CallError {
  return error instanceof CallError
    ? error
    : new CallError('internal_error', 'Internal error: the log of the service has the details.', {}, error)
}
