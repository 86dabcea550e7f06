import { AsyncLocalStorage } from 'node:async_hooks'
import type { ClientRequest, IncomingMessage } from 'node:http'
import { Agent, type AgentOptions } from 'node:https'

/** What a push service answered that was no success. */
export interface Refusal {
  status: number
  retryAfter: string | undefined
  /** The first 64 KiB of it. */
  body: string
}

interface Attempt {
  request?: ClientRequest
  isOver: boolean
  refuse(refusal: Refusal): void
  fail(error: Error): void
}

const MAX_BODY = 65_536
const current = new AsyncLocalStorage<Attempt>()

/**
 * Why this exists: firebase-admin's send() repeats by itself what failed with 503 or a reset (up to four times, after as long as
 * Retry-After says), goes on doing so when its caller has stopped waiting, never repeats a 429, and keeps Retry-After to itself. A
 * push that is repeated behind our back is one too many, and a sender that does not wait as it was told gets throttled. With
 * this agent a sending is one request: its refusal or failure is seen here at once, and whatever is asked for after that does not leave.
 */
export class OneAttemptAgent extends Agent {
  readonly #timeoutMs: number

  constructor({ timeoutMs, ...options }: AgentOptions & { timeoutMs: number }) {
    super(options)
    this.#timeoutMs = timeoutMs
  }

  /** Runs `send` as one attempt. @returns its result, the refusal, or 'timeout', whichever is first; rejects when the network fails */
  attempt<T>(send: () => Promise<T>): Promise<T | Refusal | 'timeout'> {
    return new Promise((resolve, reject) => {
      const end = (settle: () => void) => {
        if (attempt.isOver) return
        attempt.isOver = true
        clearTimeout(timer)
        settle()
      }
      const attempt: Attempt = {
        isOver: false,
        refuse: (refusal) => end(() => resolve(refusal)),
        fail: (error) => end(() => reject(error)),
      }
      const timer = setTimeout(() => {
        end(() => resolve('timeout'))
        attempt.request?.destroy()
      }, this.#timeoutMs)
      current.run(attempt, send).then((result) => end(() => resolve(result)), attempt.fail)
    })
  }

  /** Node's http.ClientRequest calls this: the place that every agent since agent-base overrides. */
  addRequest(request: ClientRequest, options: object): void {
    const attempt = current.getStore()
    if (attempt && request.path.endsWith('/messages:send')) {
      if (attempt.isOver || attempt.request) return refuse(request)
      attempt.request = request
      request.prependOnceListener('error', attempt.fail)
      request.prependOnceListener('response', (response) => observe(response, attempt))
    }
    ;(Agent.prototype as unknown as { addRequest(request: ClientRequest, options: object): void }).addRequest.call(this, request, options)
  }
}

/** A request without a socket says nothing when it is destroyed, and the SDK would wait for ever. */
function refuse(request: ClientRequest): void {
  request.destroy()
  process.nextTick(() => request.emit('error', new Error('one attempt is over')))
}

/** Listens in: the SDK reads the same answer. */
function observe(response: IncomingMessage, attempt: Attempt): void {
  const { statusCode: status = 0, headers } = response
  response.on('error', attempt.fail)
  if (status >= 200 && status <= 299) return
  let body = ''
  response.on('data', (chunk: Buffer) => {
    if (body.length < MAX_BODY) body += chunk.toString()
  })
  response.on('end', () => attempt.refuse({ status, retryAfter: headers['retry-after'], body }))
}
