import { once } from 'node:events'
import WebSocket from 'ws'

/** A JSON-RPC client that trusts nothing: it keeps how each call failed, how long that took, and answers that are none. */

const CALL_TIMEOUT_MS = 2_000 // what the existing client gives a call
// MAX_CALLS_IN_FLIGHT: more are not read (docs/decisions/0021), and how long a call waits that nobody reads is its sender's affair.
const MAX_IN_FLIGHT = 32

/** What became of calls, for A8. */
export interface Outcomes {
  /** Failed calls, by the code of their error; `lost` when the socket was lost, `silent` when none came within 2 s. */
  failures: Record<string, number>
  /** The longest wait for an error. */
  slowestErrorMs: number
  /** Results of another kind than the method has: a failure in disguise. */
  wrong: string[]
}

export const newOutcomes = (): Outcomes => ({ failures: {}, slowestErrorMs: 0, wrong: [] })

export interface Client {
  /** @throws CallFailed */
  call(method: string, params: object): Promise<any>
  closed: Promise<number>
  socket: WebSocket
}

export class CallFailed extends Error {
  override readonly name = 'CallFailed'
  constructor(
    method: string,
    readonly code: string,
  ) {
    super(`${method}: ${code}`)
  }
}

const isOfKind: Record<string, (result: unknown) => boolean> = {
  addMessage: (id) => typeof id === 'string' && id !== '',
  takeFromQueue: Array.isArray,
  getAvailableMessageCount: Number.isInteger,
  removeMessages: (result) => result === null,
  addLiveSession: (result) => typeof result === 'boolean',
  removeLiveSession: (result) => typeof result === 'boolean',
  getLiveSession: (result) => result === true || result === null,
}

interface Pending {
  method: string
  since: number
  timer: NodeJS.Timeout
  resolve(result: unknown): void
  reject(error: CallFailed): void
}

/** @throws Error when there is nobody, or the socket is closed at once */
export async function openClient(
  url: string,
  outcomes: Outcomes,
  onEvent: (method: string, params: any) => void = () => {},
): Promise<Client> {
  const socket = new WebSocket(url, { perMessageDeflate: false, handshakeTimeout: 2_000 })
  const pending = new Map<number, Pending>()
  const line: (() => void)[] = []
  let calls = 0
  const closed = new Promise<number>((resolve) => socket.on('close', resolve))
  socket.on('error', () => {})
  socket.on('message', (data: Buffer) => {
    const frame = JSON.parse(data.toString())
    if (frame.method) return onEvent(frame.method, frame.params)
    const call = pending.get(frame.id)
    if (!call) return
    if (frame.error) return fail(frame.id, frame.error.data.code)
    settle(frame.id)
    if (!(isOfKind[call.method] ?? (() => true))(frame.result)) outcomes.wrong.push(`${call.method}: ${JSON.stringify(frame.result)}`)
    call.resolve(frame.result)
  })
  void closed.then(() => {
    for (const id of [...pending.keys()]) fail(id, 'lost')
  })
  await Promise.race([once(socket, 'open'), closed.then((code) => Promise.reject(new Error(`closed with ${code}`)))])

  return {
    socket,
    closed,
    call: (method, params) =>
      new Promise((resolve, reject) => {
        line.push(() => begin(method, params, resolve, reject))
        proceed()
      }),
  }

  function proceed(): void {
    while (line.length > 0 && pending.size < MAX_IN_FLIGHT) line.shift()!()
  }

  function begin(method: string, params: object, resolve: Pending['resolve'], reject: Pending['reject']): void {
    const id = ++calls
    const timer = setTimeout(() => fail(id, 'silent'), CALL_TIMEOUT_MS)
    pending.set(id, { method, resolve, reject, timer, since: performance.now() })
    if (socket.readyState !== WebSocket.OPEN) fail(id, 'lost')
    else socket.send(JSON.stringify({ jsonrpc: '2.0', id, method, params }))
  }

  function settle(id: number): Pending | undefined {
    const call = pending.get(id)
    clearTimeout(call?.timer)
    pending.delete(id)
    setImmediate(proceed)
    return call
  }

  function fail(id: number, code: string): void {
    const call = settle(id)
    if (!call) return
    outcomes.failures[code] = (outcomes.failures[code] ?? 0) + 1
    // A lost socket answers nothing; its caller knew at once.
    if (code !== 'lost') outcomes.slowestErrorMs = Math.max(outcomes.slowestErrorMs, performance.now() - call.since)
    call.reject(new CallFailed(call.method, code))
  }
}
