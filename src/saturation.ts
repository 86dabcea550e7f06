import type { Clock } from './ports.js'

/**
 * Tells when calls had better be refused at once, because they would not be answered in time anyway. Whatever is saturated, the event loop,
 * the pool of connections or the database itself, calls then wait in line for it; and when one after the other took half of what a call may
 * take, a new one has little hope and makes it worse for those before it. As long as some are quick, the others are only slow. Once
 * calls are refused the line gets shorter, and the first quick one tells.
 *
 * @see RFC 8289 (CoDel): a standing queue is known by the least wait within an interval, not by its length
 */

/** Calls take 1.4 s at most (CALL_DEADLINE_MS). */
const SLOW_MS = 700
/** So many in a row, without a quick one between them. */
const SLOW_CALLS = 8
/** What was longer ago says nothing. */
const FRESH_MS = 500
/** Meanwhile one call after such a pause is let in to find out: an outage may be over at once. */
const PROBE_MS = 50

export interface Saturation {
  /** How long a call took that was admitted. */
  observe(ms: number): void
  isSaturated(): boolean
}

export function createSaturation(now: Clock): Saturation {
  let slowCalls = 0
  let slowAt = 0
  let probedAt = 0

  return {
    observe(ms) {
      if (ms < SLOW_MS) {
        slowCalls = 0
      } else {
        slowCalls++
        slowAt = now()
      }
    },
    isSaturated() {
      if (slowCalls < SLOW_CALLS) return false // mostly, and without asking for the time
      const time = now()
      if (time - slowAt >= FRESH_MS) return false
      if (time - Math.max(slowAt, probedAt) < PROBE_MS) return true
      probedAt = time
      return false
    },
  }
}
