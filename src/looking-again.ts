import type { Recipient } from './delivery.js'
import type { Clock, Log, SessionDirectory } from './ports.js'

/**
 * What was being written while a session was opened. An insert that began before the session was recorded does not see it, and so nobody is told;
 * and when it is committed afterwards, the session has not seen the message either. So each session looks for such, in the store. Until the last
 * look it is not settled: something may yet turn up that comes before what it was given. docs/decisions/0005
 */

/** Since a session was opened: longer than an add takes as a rule, and longer than any statement may take (1.2 s). */
const LOOKS_MS = [25, 1_500]
/** Those whose time comes within so long look together, so much later at most. */
const TOGETHER_MS = 25
/** After a look that failed. */
const RETRY_MS = 1_000

export interface LookingAgainOptions {
  directory: Pick<SessionDirectory, 'waiting'>
  log: Log
  now: Clock
  leaseMs: number
  isOpen(recipient: Recipient): boolean
  /** There is something for the session of this connection. */
  found(connectionId: string): void
}

/** @returns a function that has a session, which was opened just now, look again */
export function createLookingAgain({ directory, log, now, leaseMs, isOpen, found }: LookingAgainOptions) {
  let ahead: { recipient: Recipient; at: number; isLast: boolean }[] = []
  let isRunning = false
  let isFailing = false

  return (recipient: Recipient): void => {
    LOOKS_MS.forEach((ms, i) => ahead.push({ recipient, at: now() + ms, isLast: i === LOOKS_MS.length - 1 }))
    if (!isRunning) later(TOGETHER_MS)
  }

  function later(ms: number): void {
    isRunning = true
    setTimeout(() => void look(), ms).unref()
  }

  async function look(): Promise<void> {
    const time = now()
    ahead = ahead.filter(({ recipient }) => isOpen(recipient))
    const due = ahead.filter(({ at }) => at <= time)
    let pause = TOGETHER_MS
    try {
      if (due.length > 0) {
        const connectionIds = [...new Set(due.map(({ recipient }) => recipient.connectionId))]
        for (const { connectionId } of await directory.waiting(leaseMs, connectionIds)) found(connectionId)
        for (const { recipient, isLast } of due) if (isLast) recipient.isSettled = true
        ahead = ahead.filter(({ at }) => at > time)
        isFailing = false
      }
    } catch (err) {
      if (!isFailing) log.warn({ err, sessions: due.length }, 'new sessions could not look for mail, trying again every second')
      isFailing = true
      pause = RETRY_MS
    }
    isRunning = false
    if (ahead.length > 0) later(pause)
  }
}
