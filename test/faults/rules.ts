import type { Outcomes } from './client.js'
import type { Report } from './ledger.js'

/** A1 to A8 of reliability.md: what must be true after every fault. */

const ERROR_WITHIN_MS = 1_500

export const RULES = {
  A1: 'nothing is lost',
  A2: 'no ghosts',
  A3: 'nothing comes back after its ack',
  A4: 'in order',
  A5: 'repeats only where the fault explains them',
  A6: 'after drain and ack every counter and gauge is 0',
  A7: 'who waits gets everything in time',
  A8: 'each failed call is told so in time, by an error that the fault explains; every process lives',
} as const

export type Rule = keyof typeof RULES
/** What each rule finds fault with. */
export type Violations = Record<Rule, string[]>

/** What a scenario allows because of its fault. */
export interface Bounds {
  /** A5, on the connections that the fault touched. Elsewhere there must be none. */
  maxRepeats?: number
  /** A7, from the answer of an add to its delivery. */
  withinMs?: number
  /** A8, codes of errors. */
  allowed?: readonly string[]
}

/** What was found when the load was over and everything had been taken and acked. */
export interface Remains {
  /** Rows in the store. */
  rows: number
  /** The sum of getAvailableMessageCount. */
  counted: number
  /** Gauges of living instances that are not 0, by name. */
  gauges: Record<string, number>
  /** Processes that ended although nobody ended them, and what they logged as an error. */
  complaints: readonly string[]
}

export function violations(report: Report, outcomes: Outcomes, remains: Remains, bounds: Bounds): Violations {
  const { maxRepeats = 0, withinMs = 2_000, allowed = [] } = bounds
  const { failures, slowestErrorMs, wrong } = outcomes
  const unless = (isFine: boolean, complaint: string) => (isFine ? [] : [complaint])
  const codes = Object.keys(failures).filter((code) => !allowed.includes(code))
  return {
    A1: report.lost,
    A2: report.ghosts,
    A3: report.resurrected,
    A4: report.inversions,
    A5: [
      ...report.strayRepeats,
      ...unless(report.repeats <= maxRepeats, `${report.repeats} repeats, at most ${maxRepeats} are explained by the fault`),
    ],
    A6: [
      ...report.unacked,
      ...unless(remains.rows === 0, `${remains.rows} rows are left`),
      ...unless(remains.counted === 0, `${remains.counted} are counted as available`),
      ...Object.entries(remains.gauges).map(([name, value]) => `${name} is ${value}`),
    ],
    A7: unless(report.worstDelayMs <= withinMs, `the slowest came after ${Math.round(report.worstDelayMs)} ms, ${withinMs} are allowed`),
    A8: [
      ...codes.map((code) => `${failures[code]} calls failed with ${code}`),
      ...unless(slowestErrorMs <= ERROR_WITHIN_MS, `an error came after ${Math.round(slowestErrorMs)} ms`),
      ...wrong,
      ...remains.complaints,
    ],
  }
}
