import { randomUUID } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import postgres, { type Options } from 'postgres'
import type { Log, PubSub } from '../../src/ports.js'
import { createBusState } from './bus-state.js'
import { createSubscribers } from './subscribers.js'

/**
 * Hints over LISTEN/NOTIFY, for several instances without a Redis. All instances listen on one channel and get every hint
 * (a connectionId each): Postgres looks through the list of a session's channels for each notification, so a channel per
 * connection would cost more. Hints that come together go out in one statement.
 *
 * postgres.js listens again by itself when its connection is lost; a probe finds the connection that is dead without a word.
 */

const CHANNEL = 'message_pickup'
const PROBE_MS = 2_000
const MAX_WAITING = 10_000

export interface PostgresPubSubOptions {
  connect: Options<Record<string, never>>
  log: Log
}

export function createPostgresPubSub({ connect, log }: PostgresPubSubOptions): PubSub {
  const state = createBusState('postgres', log)
  const subscribers = createSubscribers({ onFirst: async () => {}, onLast: async () => {} })
  const probe = `?${randomUUID()}` // a connectionId never comes with this prefix: hints do with another
  let probeCameBack: (() => void) | undefined
  let closed = false

  let sql = open()
  const waiting = new Set<string>()
  let sending = false
  const probing = setInterval(() => void probeNow(), PROBE_MS)

  return {
    publish(connectionId) {
      if (waiting.size < MAX_WAITING) waiting.add(connectionId)
      if (sending) return
      sending = true
      setImmediate(() => void send())
    },
    subscribe: (connectionId, onHint) => subscribers.add(connectionId, onHint),
    isUp: state.isUp,
    async close() {
      closed = true
      clearInterval(probing)
      await sql.end({ timeout: 1 })
    },
  }

  function open(): postgres.Sql {
    // Left to itself the driver asks for all array types first, and when that is not answered nobody handles the rejection.
    const opened = postgres({ ...connect, max: 1, onnotice: () => {}, connect_timeout: 2, idle_timeout: 0, fetch_types: false })
    opened
      .listen(
        CHANNEL,
        (payload) => (payload === probe ? probeCameBack?.() : payload.startsWith('!') && subscribers.notify(payload.slice(1))),
        () => state.set(true),
      )
      .catch((err: unknown) => {
        state.set(false, err)
      })
    return opened
  }

  async function send(): Promise<void> {
    while (waiting.size > 0 && !closed) {
      const hints = [...waiting].map((connectionId) => `!${connectionId}`)
      waiting.clear()
      await notify(hints).catch((err: unknown) => state.set(false, err))
    }
    sending = false
  }

  function notify(payloads: string[]): Promise<unknown> {
    const sent = sql`SELECT count(pg_notify(${CHANNEL}, payload)) FROM json_array_elements_text(${JSON.stringify(payloads)}::text::json) AS payload`
    return inTime(sent)
  }

  async function probeNow(): Promise<void> {
    if (closed) return
    try {
      const back = new Promise<void>((resolve) => (probeCameBack = resolve))
      await notify([probe])
      await inTime(back)
      state.set(true)
    } catch (err) {
      if (closed) return
      state.set(false, err)
      const former = sql
      sql = open()
      void former.end({ timeout: 0 }).catch(() => {})
    }
  }

  async function inTime<T>(answer: Promise<T>): Promise<T> {
    const over = new AbortController()
    const late = sleep(PROBE_MS - 200, undefined, { ref: false, signal: over.signal }).then(() => {
      throw new Error('postgres did not notify in time')
    })
    try {
      return await Promise.race([answer, late])
    } finally {
      over.abort()
    }
  }
}
