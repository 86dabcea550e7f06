import { performance } from 'node:perf_hooks' // docs/decisions/0008, “The globals of Node”
import type { TObject, TSchema } from '@sinclair/typebox'
import { TypeCompiler, ValueErrorType, type TypeCheck, type ValueError } from '@sinclair/typebox/compiler'
import type { ArrivalOrder, Place, Task } from './arrival-order.js'
import type { Operation } from './contract.js'
import { CallError, toCallError, type ErrorName } from './errors.js'
import type { JsonBytes } from './json.js'
import type { Caller, Outcome } from './pickup.js'
import type { RateLimit } from './rate-limit.js'
import type { Saturation } from './saturation.js'

/** Every call of a mediator is answered within 1.5 s, because the existing client gives up after 2 s. */
export const CALL_DEADLINE_MS = 1_400

/** One operation, ready to be called by any transport. */
export interface Call {
  readonly name: string
  readonly operation: Operation
  /** Checks the parameters and runs the operation. */
  run: Run
}

/** Makes a call, and tells how it ended: once, and not before this returns. */
export type Run = (params: unknown, payload: JsonBytes | undefined, caller: Caller, ended: Ended, order?: ArrivalOrder) => void

/**
 * With a result, or with what it failed with: a CallError, or what is not the caller's fault.
 * A callback and no promise, because what a call in flight holds lies outside the caches when it is answered. docs/decisions/0008
 */
export type Ended = (error: unknown, result?: CallResult) => void

export interface CallResult {
  /** A list is emptied when `ended` has returned. */
  value: unknown
  /** As JSON. */
  text: string
}

export interface CallsOptions {
  /** When a call is answered at the latest. What is not done by then goes on, but its caller is told that the outcome is unknown. */
  deadlineMs: number
  /** Calls of this instance that may run at the same time. */
  maxInFlight: number
  rateLimit: RateLimit
  saturation?: Saturation
  /** Told how each call ended, for whoever watches the service. It is on the path of every call. */
  observe?(name: string, outcome: 'ok' | ErrorName, ms: number): void
}

export interface Calls {
  readonly byName: ReadonlyMap<string, Call>
  inFlight(): number
  /** Refusing calls: a socket that still comes is better sent elsewhere. */
  isDraining(): boolean
  /** Refuses new calls from now on and resolves when the running ones are done. Bounded by the deadline of a call. */
  drain(): Promise<void>
}

interface Row {
  readonly name: string
  method(params: never, caller: Caller, outcome: Outcome<unknown>): Promise<unknown> | undefined
  stringify(value: unknown): string
}

/** Joins each row of a table of operations with the method of the same name. */
export function createCalls<Name extends string>(
  operations: Record<Name, Operation>,
  methods: Record<Name, (params: never, caller: Caller, outcome: Outcome<never>) => Promise<unknown> | undefined>,
  { deadlineMs, maxInFlight, rateLimit, saturation, observe }: CallsOptions,
): Calls {
  let inFlight = 0
  let onIdle: (() => void) | undefined
  let draining = false

  /** What a call in flight holds is one object, because it lies outside the caches when the call is answered. docs/decisions/0008 */
  class CallInFlight implements Task, Outcome<unknown> {
    private place: Place | undefined
    private readonly timer: NodeJS.Timeout

    constructor(
      private readonly row: Row,
      private readonly params: Record<string, unknown>,
      private readonly caller: Caller,
      private ended: Ended | undefined, // until it is answered
      private readonly startedAt: number,
    ) {
      inFlight++
      this.timer = setTimeout(expire, deadlineMs - (caller.waitedMs ?? 0), this)
    }

    begin(place?: Place): void {
      // A call that was still in line when its caller was told "timeout" leaves no trace.
      if (!this.ended) return process.nextTick(leave, place)
      this.place = place
      let running
      try {
        running = this.row.method(this.params as never, this.caller, this)
      } catch (error) {
        running = Promise.reject(toCallError(error))
      }
      running?.then(
        (value) => this.succeed(value),
        (error: unknown) => this.fail(error),
      )
    }

    succeed(value: unknown): void {
      this.place?.leave()
      if (!this.ended) return
      let text
      try {
        text = this.row.stringify(value)
      } catch (error) {
        return this.answer(error)
      }
      this.answer(undefined, { value, text })
      // The promise of a call that had to wait is an old object by now, and keeps what it was resolved with: a page of messages. docs/decisions/0008
      if (Array.isArray(value)) value.length = 0
    }

    fail(error: unknown): void {
      this.place?.leave()
      this.answer(error)
    }

    /** Once, and in time, whatever happens: what comes later is not told any more. */
    answer(error: unknown, result?: CallResult): void {
      const { ended } = this
      if (!ended) return
      this.ended = undefined
      clearTimeout(this.timer)
      const ms = performance.now() - this.startedAt
      saturation?.observe(ms)
      observe?.(this.row.name, result ? 'ok' : toCallError(error).code, ms)
      inFlight--
      if (inFlight === 0) onIdle?.()
      ended(error, result)
    }
  }

  const byName = new Map<string, Call>()
  for (const name of Object.keys(operations) as Name[]) byName.set(name, createCall(name))

  return {
    byName,
    inFlight: () => inFlight,
    isDraining: () => draining,
    async drain() {
      draining = true
      if (inFlight > 0) await new Promise<void>((resolve) => (onIdle = resolve))
    },
  }

  function createCall(name: Name): Call {
    const operation = operations[name]
    const check = TypeCompiler.Compile(operation.params)
    const row: Row = {
      name,
      method: methods[name],
      stringify: (value) => operation.stringify?.(value) ?? JSON.stringify(value),
    }
    const overlaps = operation.overlaps && name

    return {
      name,
      operation,
      run(input, payload, caller, ended, order) {
        const startedAt = performance.now()
        let params
        try {
          admit(caller)
          params = bind(check, input, payload)
        } catch (error) {
          const refusal = toCallError(error)
          observe?.(name, refusal.code, performance.now() - startedAt)
          process.nextTick(ended, refusal)
          return
        }
        const call = new CallInFlight(row, params, caller, ended, startedAt)
        if (order) order.run(params.connectionId as string, overlaps, call)
        else call.begin()
      },
    }
  }

  function expire(call: CallInFlight): void {
    call.answer(timeout(deadlineMs))
  }

  /** Refuses at once what could not be served anyway: quickly, so that those who are served stay quick. */
  function admit({ client }: Caller): void {
    if (draining) throw new CallError('shutting_down', 'This instance is shutting down: connect again.')
    if (client !== undefined && !rateLimit.take(client)) {
      throw new CallError('rate_limited', 'Too many calls a second (RATE_LIMIT_CALLS_PER_SECOND): slow down, and try again.')
    }
    if (inFlight >= maxInFlight) {
      throw new CallError('overloaded', 'This instance has as many calls in flight as it takes: try again, or another instance.', {
        limit: maxInFlight,
      })
    }
    if (saturation?.isSaturated()) {
      throw new CallError('overloaded', 'This instance is too slow at the moment to answer in time: try again, or another instance.')
    }
  }
}

function leave(place: Place | undefined): void {
  place?.leave()
}

function timeout(deadlineMs: number): CallError {
  return new CallError(
    'timeout',
    `Not answered within ${deadlineMs} ms; it may have taken effect. Repeat addMessage with the same idempotencyKey.`,
  )
}

/** The parameters as the operation wants them: checked, and the payload as the text that came in. */
function bind(check: TypeCheck<TObject>, input: unknown, payload: JsonBytes | undefined): Record<string, unknown> {
  if (typeof input !== 'object' || input === null || Array.isArray(input)) {
    throw new CallError('invalid_params', 'Params must be an object with the parameters by name.', { field: 'params' })
  }
  if (!check.Check(input)) throw invalid(check.Errors(input).First())
  const params = input as Record<string, unknown>
  if (payload !== undefined && params.payload !== undefined) params.payload = payload
  return params
}

function invalid(error: ValueError | undefined): CallError {
  if (!error) return new CallError('invalid_params', 'Invalid params.')
  const field = error.path.slice(1).replaceAll('/', '.') || 'params'
  const { schema, value } = error
  const complain = (text: string, limit?: number) =>
    new CallError('invalid_params', `Invalid params: ${field} ${text}.`, limit === undefined ? { field } : { field, limit })
  switch (error.type) {
    case ValueErrorType.ObjectRequiredProperty:
      return complain('is missing')
    case ValueErrorType.StringMinLength:
      return complain('must not be empty', schema.minLength as number)
    case ValueErrorType.StringMaxLength:
      return complain(`must be at most ${schema.maxLength} characters long, it has ${(value as string).length}`, schema.maxLength as number)
    case ValueErrorType.StringPattern:
      return complain('must not contain NUL or an unpaired surrogate')
    case ValueErrorType.StringFormat:
      return complain('must be a date and time in ISO 8601 with an offset, like 2026-01-31T12:00:00.000Z')
    case ValueErrorType.ArrayMinItems:
      return complain(`must have at least ${schema.minItems} item`, schema.minItems as number)
    case ValueErrorType.ArrayMaxItems:
      return complain(`must have at most ${schema.maxItems} items, it has ${(value as unknown[]).length}`, schema.maxItems as number)
    case ValueErrorType.IntegerMinimum:
      return complain(`must be at least ${schema.minimum}`, schema.minimum as number)
    case ValueErrorType.IntegerMaximum:
      return complain(`must be at most ${schema.maximum}`, schema.maximum as number)
    default:
      return complain(`must be ${expected(schema)}, it is ${nameOf(value)}`)
  }
}

function expected(schema: TSchema): string {
  if (schema.const !== undefined) return JSON.stringify(schema.const)
  if (Array.isArray(schema.anyOf)) return (schema.anyOf as TSchema[]).map(expected).join(' or ')
  const article = /^[aeio]/.test(String(schema.type)) ? 'an' : 'a'
  return `${schema.minLength ? 'a non-empty' : article} ${schema.type as string}`
}

function nameOf(value: unknown): string {
  if (value === null) return 'null'
  if (value === '') return 'empty'
  if (Array.isArray(value)) return 'an array'
  return `of type ${typeof value}`
}
