import { noFaults, type Faults } from '../ledger.js'
import type { Latency } from '../measure.js'
import type { Cost, Place, Stand } from '../stand.js'
import type { Traffic } from '../traffic.js'

/** One row of the result in one round. */
export interface Sample {
  messages: number
  perSecond?: number
  /** µs per message. */
  cpu?: { service: number; postgres: number; redis: number; generator: number }
  peakMiB?: number
  latencies: Record<string, Latency>
  /** What only this scenario has; the name tells the unit. */
  facts: Record<string, number>
  faults: Faults
  refused: number
}

export type Samples = Record<string, Sample>

/** How much of everything. */
export interface Size {
  isSmoke: boolean
  rounds: number
  messages: number
  connections: number
  perSecond: number
  seconds: number
  crowd: number
  sessions: number
  table: number
  bigMessages: number
}

export const FULL: Size = {
  isSmoke: false,
  rounds: 3,
  messages: 20_000,
  connections: 1_000,
  perSecond: 500,
  seconds: 5,
  crowd: 10_000,
  sessions: 2_000,
  table: 1_000_000,
  bigMessages: 100,
}

export const SMOKE: Size = {
  isSmoke: true,
  rounds: 1,
  messages: 400,
  connections: 40,
  perSecond: 200,
  seconds: 0.5,
  crowd: 50,
  sessions: 50,
  table: 1_000,
  bigMessages: 2,
}

/** Not measured: until V8 has compiled what runs often. After 400 messages it has not, and still is at it after 100,000 (--trace-opt): twice. */
export const WARM: Size = { ...SMOKE, messages: 100_000, connections: 1_000, perSecond: 2_000, seconds: 5 }

export const SOCKETS = 8
export const IN_FLIGHT = 32
export const PAYLOAD_BYTES = 1_500

/** Scenarios that are compared with each other stand on the same place, and run in turn in every round. */
export interface Group {
  open(stand: Stand): Promise<{ scenarios: Scenario[]; close(): Promise<void> }>
  names: string[]
  /** Its services are kept for all rounds, and are to be warm. */
  warms: boolean
  /** More of them than others take. */
  rounds?: number
  /** Runs only when it is named. */
  isExtra?: boolean
}

export interface Scenario {
  /** What are measured together, because one needs the other. */
  names: string[]
  /** Takes its rounds itself. */
  once?: boolean
  /** One round. */
  run(size: Size): Promise<Samples>
}

export function sampleOf(traffic: Traffic, cost?: Cost, facts: Record<string, number> = {}): Sample {
  const { messages, ms, latencies, faults, refused, lateMs } = traffic
  const per = (us: number) => us / messages
  return {
    messages,
    perSecond: (messages / ms) * 1_000,
    ...(cost && {
      cpu: { service: per(cost.service), postgres: per(cost.postgres), redis: per(cost.redis), generator: per(cost.generator) },
      peakMiB: cost.peakBytes / 2 ** 20,
    }),
    latencies,
    facts: { ...(cost && { walBytes: per(cost.walBytes) }), ...facts, ...(lateMs === undefined ? {} : { lateMs }) },
    faults,
    refused,
  }
}

export const factsOnly = (messages: number, facts: Record<string, number>): Sample => ({
  messages,
  latencies: {},
  facts,
  faults: noFaults(),
  refused: 0,
})

/** After a scenario nothing may be left, but what adds stored that were answered with an error, `timeout` for example. */
export async function mustBeEmpty({ client }: Place, refused = 0): Promise<void> {
  const { rows } = await client.query<{ left: number }>('SELECT count(*)::int AS left FROM queued_messages')
  if (rows[0]!.left > refused) throw new Error(`${rows[0]!.left} messages are left in the table, ${refused} adds were refused`)
  if (rows[0]!.left > 0) await client.query('TRUNCATE queued_messages')
}
