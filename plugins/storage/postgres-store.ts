import type { DeliverableMessage, MessageStore } from '../../src/ports.js'
import { promised } from '../../src/told.js'
import { byKey, createAdding, type AddingOptions } from './adding.js'
import { bigintArray, intArray, textArray } from './binary-array.js'
import { createCoalescer } from './coalesce.js'
import { AVAILABLE, BY_SEQ, IS_PICKED, isRowOf, LIVE_EPOCH, RECEIVED_MS, toMessage, type MessageRow } from './fragments.js'
import { formatId, parseId } from './message-id.js'
import type { Statement } from './query.js'
import { createTaking, takeStatements } from './taking.js'
import { createTallies, tallyOf, tallyStatements } from './tallies.js'

/*
 * Every statement below is keyed by connection_id ($1) and reads the primary key (connection_id, seq), so that its cost
 * depends neither on other queues nor, up to its limit, on the depth of this one. test/plans.test.ts reads the plans.
 * Rows are picked in a CTE and named again as IS_PICKED: with a join the planner may read the whole queue.
 */

/** In vain. Then a message is left to take. */
export const MAX_DELIVERIES = 5

/**
 * What may be pushed in the session with this epoch: not in flight in it, and not pushed in vain too often. After each
 * delivery the next waits 30, 60, 120 s ...; after five the message is left to take.
 */
export const deliverable = (epoch: string, leaseMs: string) => `(m.deliveries < ${MAX_DELIVERIES}
      AND (m.in_flight_epoch IS DISTINCT FROM ${epoch} OR greatest(m.in_flight_until, m.in_flight_until - ${leaseMs} * interval '1 ms'
        + CASE WHEN m.deliveries > 0 THEN 30 * 2 ^ (m.deliveries - 1) ELSE 0 END * interval '1 s') <= now()))`

/** Marked for this session by an add or a claim whose answer was lost, so that nobody sent it. Only when $8 tells what was sent. */
const NEVER_SENT = `($8::bigint[] IS NOT NULL AND m.in_flight_epoch = $2 AND NOT m.in_flight_taken AND m.deliveries = 1 AND m.seq <> ALL ($8))`

/** How long the key of a removed message is remembered (the trigger remember_keys). Longer than any client repeats one call. */
const KEYS_REMEMBERED_S = 300

const statements = {
  byKey,
  ...takeStatements,
  ...tallyStatements,

  // And how many rows were read that a newer tally would have spared. A tally tells nothing about DIDs, nor about what is in flight or expired:
  // it is used where there is no live session, and the first message, which expires first, does not do so soon.
  count: {
    name: 'count',
    text: `WITH live AS MATERIALIZED (SELECT (${LIVE_EPOCH}) AS epoch),
  head AS MATERIALIZED (
    SELECT seq FROM (SELECT m.seq, m.accepted_at FROM queued_messages m WHERE m.connection_id = $1 ORDER BY m.seq LIMIT 1) first
    WHERE $2::text IS NULL AND (SELECT epoch FROM live) IS NULL AND now() - accepted_at < $3::interval - interval '1 minute'),
  tally AS MATERIALIZED (${tallyOf('$1', '(SELECT seq FROM head)')})
  SELECT (coalesce((SELECT messages FROM tally), 0) + count(*))::int,
    CASE WHEN EXISTS (SELECT FROM head) THEN coalesce((SELECT rows_read FROM tally), 0) + count(*) ELSE 0 END::int
  FROM queued_messages m
  WHERE ${AVAILABLE} AND m.seq > coalesce((SELECT up_to_seq FROM tally), 0)
    AND (m.in_flight_epoch IS NULL OR m.in_flight_until <= now() OR m.in_flight_epoch IS DISTINCT FROM (SELECT epoch FROM live))`,
  },

  // Of many connections, in the order of the primary key: two of these, or one and a take, do not wait for each other in a circle.
  remove: {
    name: 'remove',
    text: `DELETE FROM queued_messages m USING unnest($1::text[], $2::bigint[], $3::int[]) AS u (connection_id, seq, tag)
  WHERE ${isRowOf('m', 'u', 'seq')} AND m.tag = u.tag`,
  },

  removeAll: {
    name: 'remove_all',
    text: `DELETE FROM queued_messages m WHERE m.connection_id = $1 AND $2 = ANY (m.recipient_dids) RETURNING seq, tag`,
  },

  depth: {
    name: 'depth',
    text: `SELECT (coalesce(t.messages, 0) + later.messages)::int, (coalesce(t.bytes, 0) + later.bytes)::float8, (coalesce(t.rows_read, 0) + later.messages)::int
  FROM unnest($1::text[]) WITH ORDINALITY AS u (connection_id, place)
  LEFT JOIN LATERAL (${tallyOf('u.connection_id')}) t ON true
  CROSS JOIN LATERAL (
    SELECT count(*) AS messages, coalesce(sum(m.payload_bytes), 0) AS bytes FROM queued_messages m
    WHERE m.connection_id = u.connection_id AND m.seq > coalesce(t.up_to_seq, 0)) later
  ORDER BY u.place`,
  },

  claim: {
    name: 'claim',
    text: `WITH session AS MATERIALIZED (SELECT since, since_seq FROM live_sessions WHERE connection_id = $1 AND epoch = $2),
  head AS (
    SELECT m.seq, m.payload_bytes FROM queued_messages m
    WHERE m.connection_id = $1 AND m.seq > (SELECT since_seq FROM session) AND NOT pg_visible_in_snapshot(m.accepted_by, (SELECT since FROM session))
      AND now() - m.accepted_at < $3::interval AND (${deliverable('$2', '$7::int')} OR ${NEVER_SENT})
    ORDER BY m.seq LIMIT $4::int + 1 FOR UPDATE SKIP LOCKED),
  picked AS (
    SELECT seq FROM (SELECT seq, row_number() OVER by_seq AS place, sum(payload_bytes) OVER by_seq AS running_bytes FROM head ${BY_SEQ}) h
    WHERE place <= $4 AND (running_bytes <= $5 OR place = 1 AND $6::boolean)),
  claimed AS (
    UPDATE queued_messages m
    SET in_flight_epoch = $2, in_flight_until = now() + $7::int * interval '1 ms', in_flight_taken = false, deliveries = m.deliveries + 1
    WHERE ${IS_PICKED}
    RETURNING m.seq, m.tag, ${RECEIVED_MS} AS received_ms, m.payload, m.payload_bytes, m.deliveries)
  SELECT EXISTS (SELECT FROM session), EXISTS (SELECT FROM live_sessions WHERE connection_id = $1), (SELECT count(*) FROM head) > (SELECT count(*) FROM picked),
    c.seq, c.tag, c.received_ms, c.payload, c.payload_bytes, c.deliveries
  FROM (SELECT) one LEFT JOIN claimed c ON true`,
  },

  // Uses queued_messages_accepted_at. The trigger remember_keys is told to leave the keys free, until this transaction ends.
  expire: {
    name: 'expire',
    text: `WITH old AS (
    SELECT connection_id, seq FROM queued_messages
    WHERE accepted_at <= now() - $1::interval AND (SELECT set_config('message_pickup.keys', 'forgotten', true)) IS NOT NULL
    ORDER BY accepted_at LIMIT $2 FOR UPDATE SKIP LOCKED)
  DELETE FROM queued_messages m USING old WHERE ${isRowOf('m', 'old', 'seq')} RETURNING 1`,
  },

  // Uses removed_keys_removed_at.
  forget: {
    name: 'forget',
    text: `DELETE FROM removed_keys k USING (
    SELECT connection_id, idempotency_key FROM removed_keys WHERE removed_at <= now() - interval '${KEYS_REMEMBERED_S} seconds'
    ORDER BY removed_at LIMIT $1 FOR UPDATE SKIP LOCKED) old
  WHERE ${isRowOf('k', 'old', 'idempotency_key')} RETURNING 1`,
  },

  // Of nobody, for no connectionId is empty: it fails like any other call where the table is locked, lost or read-only, and writes nothing.
  ping: { name: 'ping', text: `DELETE FROM queued_messages WHERE connection_id = ''` },
} satisfies Record<string, Statement>

export { statements }

interface Removal {
  connectionId: string
  ids: readonly string[]
}

// Acks come one by one and cost a commit each; together they cost a fifth and less. Here "bytes" are ids.
const REMOVE_BATCH = { atOnce: 2, maxItems: 500, maxBytes: 5_000, maxWaitingBytes: 1_000_000, maxWaitMs: 1_000 }

// Few queues are deep, but they hold up what is asked for together with them. Here "bytes" are queues.
const DEPTH_BATCH = { atOnce: 2, maxItems: 50, maxBytes: 50, maxWaitingBytes: 100_000, maxWaitMs: 1_000 }

export interface PostgresStoreOptions extends AddingOptions {
  /** Seconds after which a message expires; 0 = never. */
  messageTtlSeconds: number
  /** How many rows counts of a queue may read before a tally of it is made. */
  tallyWorthRows?: number
}

export function createPostgresStore({ query, instanceId, messageTtlSeconds, pushes, tallyWorthRows }: PostgresStoreOptions): MessageStore {
  const ttl = messageTtlSeconds > 0 ? `${messageTtlSeconds} seconds` : '1000 years'
  const tallies = createTallies({ query, worthRows: tallyWorthRows })
  const removeCoalesced = createCoalescer({
    ...REMOVE_BATCH,
    key: ({ connectionId }: Removal) => connectionId,
    bytes: ({ ids }: Removal) => ids.length,
    flush: removeBatch,
  })

  const depthCoalesced = createCoalescer({
    ...DEPTH_BATCH,
    key: (connectionId: string) => connectionId,
    bytes: () => 1,
    flush: async (connectionIds: string[]) => {
      const rows = await query<[messages: number, bytes: number, rowsRead: number]>(statements.depth, [textArray(connectionIds)])
      return rows.map(([messages, bytes, rowsRead], i) => {
        tallies.note(connectionIds[i]!, rowsRead)
        return { messages, bytes }
      })
    },
  })

  return {
    ...createAdding({ query, instanceId, pushes }),
    ...createTaking({ query, age: ttl }),

    async count(connectionId, recipientDid) {
      const rows = await query<[messages: number, rowsRead: number]>(statements.count, [connectionId, recipientDid ?? null, ttl])
      const [messages, rowsRead] = rows[0]!
      tallies.note(connectionId, rowsRead)
      return messages
    },

    remove: (connectionId, ids) => promised((told) => removeCoalesced({ connectionId, ids }, told)),

    async removeAll(connectionId, recipientDid) {
      const rows = await query<[string, number]>(statements.removeAll, [connectionId, recipientDid])
      return rows.map(([seq, tag]) => formatId(seq, tag))
    },

    depth: (connectionId) => promised((told) => depthCoalesced(connectionId, told)),

    async claim({ connectionId, epoch, limit, limitBytes, alone, leaseMs, sent }) {
      const sentSeqs = sent?.flatMap((id) => parseId(id)?.seq ?? [])
      const rows = await query<
        [isCurrent: boolean, hasSession: boolean, more: boolean, ...MessageRow, payloadBytes: number, deliveries: number]
      >(statements.claim, [connectionId, epoch, ttl, limit, limitBytes, alone, leaseMs, sentSeqs && bigintArray(sentSeqs)])
      const [isCurrent, hasSession, more] = rows[0]!
      const messages: DeliverableMessage[] = rows
        .filter(([, , , seq]) => seq !== null)
        .sort((a, b) => Number(a[3]) - Number(b[3]))
        .map(([, , , seq, tag, receivedMs, payload, payloadBytes, deliveries]) => ({
          ...toMessage([seq, tag, receivedMs, payload]),
          payloadBytes,
          deliveries,
        }))
      return { state: isCurrent ? 'current' : hasSession ? 'replaced' : 'ended', more, messages }
    },

    async expire(limit) {
      if (messageTtlSeconds === 0) return 0
      return (await query(statements.expire, [ttl, limit])).length
    },

    async sweep(limit) {
      await query(statements.forget, [limit])
      await tallies.sweep()
    },

    async ping() {
      await query(statements.ping, [])
    },
  }

  async function removeBatch(removals: Removal[]): Promise<undefined[]> {
    const gone: { connectionId: string; seq: string; tag: number }[] = []
    for (const { connectionId, ids } of removals) {
      for (const id of ids) {
        const known = parseId(id)
        if (known) gone.push({ connectionId, seq: known.seq, tag: known.tag })
      }
    }
    gone.sort((a, b) => (a.connectionId < b.connectionId ? -1 : a.connectionId > b.connectionId ? 1 : Number(a.seq) - Number(b.seq)))
    if (gone.length > 0)
      await query(statements.remove, [
        textArray(gone.map(({ connectionId }) => connectionId)),
        bigintArray(gone.map(({ seq }) => seq)),
        intArray(gone.map(({ tag }) => tag)),
      ])
    return removals.map(() => undefined)
  }
}
