import type { Reply } from './jsonrpc.js'
import type { Clock } from './ports.js'

/**
 * How many calls of one socket run at the same time. What comes beyond that waits here, and the socket is not read until it has
 * begun: the sender's own TCP connection slows it down, and nothing is refused.
 *
 *   reading   fewer calls than the limit are in flight, and the sender takes its answers: a frame begins as it comes
 *   paused    frames wait. Not only one: what the socket had read already still comes, up to one buffer of it (64 KiB)
 *
 * A call is in flight until its answer has left this process, so a sender that does not read its answers is not read either.
 * A batch counts as its calls. It begins when there is room for one, so the largest batch cannot wait for ever.
 *
 * A frame that waited for WAIT_MS although the sender takes its answers stands behind calls that do not come to an end. It is
 * refused while its sender still waits for it.
 */

/** Every call is answered within 1.5 s; the existing client gives up after 2 s. */
const WAIT_MS = 1_000

export interface IntakeOptions {
  maxCalls: number
  now: Clock
  /** Answers a frame that has waited here; tells how many calls are in it when it is a batch, before it returns. */
  answer(frame: Buffer, reply: Reply, onCalls: (calls: number) => void, waitedMs: number): void
  /** Answers a frame whose calls will not be made. */
  refuse(frame: Buffer, reply: Reply, onCalls: (calls: number) => void): void
  /** `onSent` is called when the text has left this process, or could not. */
  send(text: string, onSent: () => void): void
  /** The sender does not take its answers. */
  isClogged(): boolean
  pause(): void
  resume(): void
}

export function createIntake({ maxCalls, now, answer, refuse, send, isClogged, pause, resume }: IntakeOptions) {
  const waiting: { frame: Buffer; since: number }[] = []
  let inFlight = 0
  let timer: NodeJS.Timeout | undefined

  return {
    accept(frame: Buffer): void {
      if (waiting.length === 0 && hasRoom()) return begin(frame, answer, 0)
      waiting.push({ frame, since: now() })
      if (waiting.length > 1) return
      pause()
      timer = setInterval(refuseLate, WAIT_MS / 4)
    },
    /** The socket is gone: what waits is not begun. */
    close(): void {
      waiting.length = 0
      clearInterval(timer)
    },
  }

  function hasRoom(): boolean {
    return inFlight < maxCalls && !isClogged()
  }

  // No closures for each frame: it is on the path of every call, docs/decisions/0008.
  function begin(frame: Buffer, answer: IntakeOptions['answer'], waitedMs: number): void {
    inFlight++
    answer(frame, reply, more, waitedMs)
  }

  function more(calls: number): void {
    inFlight += calls - 1
  }

  function reply(text: string | undefined, calls: number): void {
    if (text === undefined) done(calls)
    else send(text, calls === 1 ? doneOne : () => done(calls))
  }

  function doneOne(): void {
    done(1)
  }

  function done(calls: number): void {
    inFlight -= calls
    if (waiting.length > 0) next()
  }

  function next(): void {
    while (waiting.length > 0 && hasRoom()) beginNext(answer)
    if (waiting.length > 0) return
    clearInterval(timer)
    resume()
  }

  function beginNext(answer: IntakeOptions['answer']): void {
    const { frame, since } = waiting.shift()!
    begin(frame, answer, now() - since)
  }

  function refuseLate(): void {
    const late = now() - WAIT_MS
    while (waiting.length > 0 && waiting[0]!.since < late && !isClogged()) beginNext(refuse)
    next()
  }
}
