import { randomInt } from 'node:crypto'
import { CallError } from '../../src/errors.js'
import type { JsonText } from '../../src/json.js'
import type { DeliverableMessage, MessageStore, NewMessage, StoredMessage } from '../../src/ports.js'
import { createCoalescer } from './coalesce.js'
import { isRefusedValue, type Query, type Statement } from './query.js'

/*
 * Every statement below is keyed by connection_id ($1) and reads the primary key (connection_id, seq), so that its cost
 * depends neither on other queues nor, up to its limit, on the depth of this one. test/plans.test.ts reads the plans.
 * Rows are picked in a CTE and named again as `seq = ANY (ARRAY (...))`: with a join the planner may read the whole queue.
 */

/** Milliseconds since the epoch, because parsing a timestamptz in Node costs more than the rest of the row. */
const RECEIVED_MS = `(extract(epoch FROM coalesce(m.received_at, m.accepted_at)) * 1000)::float8`

/** The epoch of the connection's live session, or no row. Uses live_sessions_pkey and instances_pkey. */
export const LIVE_EPOCH = `
  SELECT s.epoch FROM live_sessions s LEFT JOIN instances i ON i.instance_id = s.instance_id
  WHERE s.connection_id = $1 AND (s.expires_at > now() OR i.lease_until > now())`

/**
 * What take may hand out: not expired, addressed to $2 (when given). The age is compared and not accepted_at, so that the index on
 * it, which holds all queues, is not even considered.
 */
const AVAILABLE = `m.connection_id = $1 AND now() - m.accepted_at < $3::interval
    AND ($2::text IS NULL OR $2 = ANY (m.recipient_dids))`
/** Not taken in the current session. */
const NOT_TAKEN = `(m.in_flight_taken IS NOT TRUE OR m.in_flight_until <= now()
      OR m.in_flight_epoch IS DISTINCT FROM (SELECT epoch FROM live))`

/** Of `head`, oldest first, what fits into $5 bytes; what could never fit is passed over, or goes alone when it is first. */
const FITS = `CASE WHEN first_bytes > $5 THEN place = 1 ELSE payload_bytes <= $5 AND running_bytes <= $5 END`
const RUNNING = `row_number() OVER by_seq AS place, first_value(payload_bytes) OVER by_seq AS first_bytes,
    sum(payload_bytes) FILTER (WHERE payload_bytes <= $5) OVER by_seq AS running_bytes`
const BY_SEQ = `WINDOW by_seq AS (ORDER BY seq ROWS UNBOUNDED PRECEDING)`
const PICKED = `picked AS (SELECT seq FROM (SELECT seq, payload_bytes, ${RUNNING} FROM head ${BY_SEQ}) h WHERE ${FITS})`
const LOCKED_HEAD = `head AS (
    SELECT m.seq, m.payload_bytes FROM queued_messages m
    WHERE ${AVAILABLE} AND ${NOT_TAKEN}
    ORDER BY m.seq LIMIT $4 FOR UPDATE)`

/**
 * What may be pushed in the session with this epoch: not in flight in it, and not pushed in vain too often. After each
 * delivery the next waits 30, 60, 120 s ...; after five the message is left to take.
 */
export const deliverable = (epoch: string, leaseMs: string) => `(m.deliveries < 5
      AND (m.in_flight_epoch IS DISTINCT FROM ${epoch} OR greatest(m.in_flight_until, m.in_flight_until - ${leaseMs} * interval '1 ms'
        + CASE WHEN m.deliveries > 0 THEN 30 * 2 ^ (m.deliveries - 1) ELSE 0 END * interval '1 s') <= now()))`

const ADD_COLUMNS = `(connection_id, tag, recipient_dids, payload, payload_bytes, received_at, idempotency_key)
  SELECT u.connection_id, $7::int, u.dids::text[], u.payload, u.bytes, u.received_at, u.idempotency_key
  FROM unnest($1::text[], $2::text[], $3::text[], $4::int[], $5::timestamptz[], $6::text[])
    AS u (connection_id, dids, payload, bytes, received_at, idempotency_key)`

const statements = {
  add: { name: 'add', text: `INSERT INTO queued_messages ${ADD_COLUMNS} RETURNING seq` },

  // Uses queued_messages_idempotency_key. Rows that were there already are not returned.
  addKeyed: {
    name: 'add_keyed',
    text: `INSERT INTO queued_messages ${ADD_COLUMNS}
  ON CONFLICT (connection_id, idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING
  RETURNING seq, connection_id, idempotency_key`,
  },

  byKey: {
    name: 'by_key',
    text: `SELECT seq, tag FROM queued_messages WHERE connection_id = $1 AND idempotency_key = $2 AND idempotency_key IS NOT NULL`,
  },

  // Reads nothing when the connection has a live session (and leases are on): then the messages must be marked, by takeMarked.
  take: {
    name: 'take',
    text: `WITH live AS MATERIALIZED (SELECT CASE WHEN $6::int > 0 THEN (${LIVE_EPOCH}) END AS epoch)
  SELECT live.epoch, taken.seq, taken.tag, taken.received_ms, taken.payload FROM live LEFT JOIN (
    SELECT * FROM (
      SELECT *, ${RUNNING} FROM (
        SELECT m.seq, m.tag, m.payload, m.payload_bytes, ${RECEIVED_MS} AS received_ms FROM queued_messages m
        WHERE ${AVAILABLE} AND (SELECT epoch FROM live) IS NULL
        ORDER BY m.seq LIMIT $4) head
      ${BY_SEQ}) h
    WHERE ${FITS}) taken ON true
  ORDER BY taken.seq`,
  },

  takeMarked: {
    name: 'take_marked',
    text: `WITH live AS MATERIALIZED (SELECT (${LIVE_EPOCH}) AS epoch), ${LOCKED_HEAD}, ${PICKED}
  UPDATE queued_messages m SET in_flight_epoch = (SELECT epoch FROM live), in_flight_until = now() + $6::int * interval '1 ms',
    in_flight_taken = (SELECT epoch FROM live) IS NOT NULL -- the session may have ended since take looked
  WHERE m.connection_id = $1 AND m.seq = ANY (ARRAY (SELECT seq FROM picked))
  RETURNING m.seq, m.tag, ${RECEIVED_MS}, m.payload`,
  },

  // One statement reads and deletes. A caller that waits for rows which another one deletes goes on to the next: LIMIT counts what
  // was locked. SKIP LOCKED would pass over rows that the other locks and then leaves, because they do not fit its bytes, and say
  // "empty" (48 of 80 takes in an experiment). All lock in the order of seq, so nobody waits in a circle.
  takeDeleted: {
    name: 'take_deleted',
    text: `WITH live AS MATERIALIZED (SELECT (${LIVE_EPOCH}) AS epoch), ${LOCKED_HEAD}, ${PICKED}
  DELETE FROM queued_messages m
  WHERE m.connection_id = $1 AND m.seq = ANY (ARRAY (SELECT seq FROM picked))
  RETURNING m.seq, m.tag, ${RECEIVED_MS}, m.payload`,
  },

  count: {
    name: 'count',
    text: `SELECT count(*)::int FROM queued_messages m
  WHERE ${AVAILABLE} AND (m.in_flight_epoch IS NULL OR m.in_flight_until <= now() OR m.in_flight_epoch IS DISTINCT FROM (${LIVE_EPOCH}))`,
  },

  remove: {
    name: 'remove',
    text: `DELETE FROM queued_messages m
  WHERE m.connection_id = $1 AND m.seq = ANY ($2::bigint[]) AND (m.seq, m.tag) IN (SELECT * FROM unnest($2::bigint[], $3::int[]))`,
  },

  removeAll: {
    name: 'remove_all',
    text: `DELETE FROM queued_messages m WHERE m.connection_id = $1 AND $2 = ANY (m.recipient_dids) RETURNING m.seq, m.tag`,
  },

  depth: {
    name: 'depth',
    text: `SELECT count(*)::int, coalesce(sum(payload_bytes), 0)::float8 FROM queued_messages WHERE connection_id = $1`,
  },

  claim: {
    name: 'claim',
    text: `WITH session AS MATERIALIZED (SELECT since, since_seq FROM live_sessions WHERE connection_id = $1 AND epoch = $2),
  head AS (
    SELECT m.seq, m.payload_bytes FROM queued_messages m
    WHERE m.connection_id = $1 AND m.seq > (SELECT since_seq FROM session) AND NOT pg_visible_in_snapshot(m.accepted_by, (SELECT since FROM session))
      AND now() - m.accepted_at < $3::interval AND ${deliverable('$2', '$7::int')}
    ORDER BY m.seq LIMIT $4::int + 1 FOR UPDATE SKIP LOCKED),
  picked AS (
    SELECT seq FROM (SELECT seq, row_number() OVER by_seq AS place, sum(payload_bytes) OVER by_seq AS running_bytes FROM head ${BY_SEQ}) h
    WHERE place <= $4 AND (running_bytes <= $5 OR place = 1 AND $6::boolean)),
  claimed AS (
    UPDATE queued_messages m
    SET in_flight_epoch = $2, in_flight_until = now() + $7::int * interval '1 ms', in_flight_taken = false, deliveries = m.deliveries + 1
    WHERE m.connection_id = $1 AND m.seq = ANY (ARRAY (SELECT seq FROM picked))
    RETURNING m.seq, m.tag, ${RECEIVED_MS} AS received_ms, m.payload, m.payload_bytes)
  SELECT EXISTS (SELECT FROM session), EXISTS (SELECT FROM live_sessions WHERE connection_id = $1), (SELECT count(*) FROM head) > (SELECT count(*) FROM picked),
    c.seq, c.tag, c.received_ms, c.payload, c.payload_bytes
  FROM (SELECT) one LEFT JOIN claimed c ON true`,
  },

  // Uses queued_messages_accepted_at.
  expire: {
    name: 'expire',
    text: `WITH old AS (
    SELECT connection_id, seq FROM queued_messages WHERE accepted_at <= now() - $1::interval
    ORDER BY accepted_at LIMIT $2 FOR UPDATE SKIP LOCKED)
  DELETE FROM queued_messages m USING old WHERE m.connection_id = old.connection_id AND m.seq = old.seq RETURNING 1`,
  },

  ping: { name: 'ping', text: 'SELECT 1' },
} satisfies Record<string, Statement>

export { statements }

// A batch is bounded so that one of large payloads neither stalls the event loop nor runs into statement_timeout.
const BATCH = { lanes: 2, maxItems: 200, maxBytes: 4 * 1024 * 1024, maxWaitingBytes: 256 * 1024 * 1024, maxWaitMs: 1_000 }

const MAX_TAG = 2 ** 31 // an integer column

type MessageRow = [seq: string, tag: number, receivedMs: number, payload: JsonText]

export interface PostgresStoreOptions {
  query: Query
  /** Seconds after which a message expires; 0 = never. */
  messageTtlSeconds: number
}

export function createPostgresStore({ query, messageTtlSeconds }: PostgresStoreOptions): MessageStore {
  const tag = randomInt(MAX_TAG)
  const ttl = messageTtlSeconds > 0 ? `${messageTtlSeconds} seconds` : '1000 years'

  return {
    add: createCoalescer({
      ...BATCH,
      key: (message: NewMessage) => message.connectionId,
      bytes: (message: NewMessage) => message.payloadBytes,
      flush: addBatch,
    }),

    async take({ connectionId, recipientDid, limit, limitBytes, remove, leaseMs }) {
      const values = [connectionId, recipientDid ?? null, ttl, limit, limitBytes]
      if (remove) return sorted(await query<MessageRow>(statements.takeDeleted, values))
      const rows = await query<[epoch: string | null, ...MessageRow]>(statements.take, [...values, leaseMs])
      if (rows[0]![0] !== null) return sorted(await query<MessageRow>(statements.takeMarked, [...values, leaseMs]))
      return rows.filter(([, seq]) => seq !== null).map(([, ...row]) => toMessage(row))
    },

    async count(connectionId, recipientDid) {
      const [row] = await query<[number]>(statements.count, [connectionId, recipientDid ?? null, ttl])
      return row![0]
    },

    async remove(connectionId, ids) {
      const known = ids.map(parseId).filter((id) => id !== undefined)
      if (known.length === 0) return
      await query(statements.remove, [connectionId, known.map(({ seq }) => seq), known.map(({ tag }) => tag)])
    },

    async removeAll(connectionId, recipientDid) {
      const rows = await query<[string, number]>(statements.removeAll, [connectionId, recipientDid])
      return rows.map(([seq, tag]) => formatId(seq, tag))
    },

    async depth(connectionId) {
      const [row] = await query<[number, number]>(statements.depth, [connectionId])
      return { messages: row![0], bytes: row![1] }
    },

    async claim({ connectionId, epoch, limit, limitBytes, alone, leaseMs }) {
      const rows = await query<[isCurrent: boolean, hasSession: boolean, more: boolean, ...MessageRow, payloadBytes: number]>(
        statements.claim,
        [connectionId, epoch, ttl, limit, limitBytes, alone, leaseMs],
      )
      const [isCurrent, hasSession, more] = rows[0]!
      const messages: DeliverableMessage[] = rows
        .filter(([, , , seq]) => seq !== null)
        .sort((a, b) => Number(a[3]) - Number(b[3]))
        .map(([, , , seq, tag, receivedMs, payload, payloadBytes]) => ({ ...toMessage([seq, tag, receivedMs, payload]), payloadBytes }))
      return { state: isCurrent ? 'current' : hasSession ? 'replaced' : 'ended', more, messages }
    },

    async expire(limit) {
      if (messageTtlSeconds === 0) return 0
      return (await query(statements.expire, [ttl, limit])).length
    },

    async ping() {
      await query(statements.ping, [])
    },
  }

  /** Each message is answered after the commit of its own row. One that Postgres refuses fails alone. */
  async function addBatch(messages: NewMessage[]): Promise<(string | Error)[]> {
    try {
      return await (messages.some(({ idempotencyKey }) => idempotencyKey !== undefined) ? addKeyed(messages) : addPlain(messages))
    } catch (error) {
      if (messages.length === 1) return [error instanceof CallError ? error : refused(error)]
      if (!isRefusedValue(error)) throw error
      const results: (string | Error)[] = []
      for (const message of messages) results.push(...(await addBatch([message])))
      return results
    }
  }

  async function addPlain(messages: NewMessage[]): Promise<string[]> {
    const rows = await query<[string]>(statements.add, addValues(messages))
    return rows.map(([seq]) => formatId(seq, tag))
  }

  async function addKeyed(messages: NewMessage[]): Promise<string[]> {
    const rows = await query<[seq: string, connectionId: string, key: string | null]>(statements.addKeyed, addValues(messages))
    // Rows come back in the order in which they were written, without those whose key was there already.
    const ids: string[] = []
    let next = 0
    for (const { connectionId, idempotencyKey = null } of messages) {
      const row = rows[next]
      if (row && row[1] === connectionId && row[2] === idempotencyKey) {
        next++
        ids.push(formatId(row[0], tag))
      } else {
        ids.push('')
      }
    }
    for (const [i, message] of messages.entries()) ids[i] ||= await idOfFirst(message)
    return ids
  }

  async function idOfFirst(message: NewMessage): Promise<string> {
    for (;;) {
      const [first] = await query<[string, number]>(statements.byKey, [message.connectionId, message.idempotencyKey])
      if (first) return formatId(...first)
      // Removed since: its key is free again.
      const [row] = await query<[string]>(statements.addKeyed, addValues([message]))
      if (row) return formatId(row[0], tag)
    }
  }

  function addValues(messages: NewMessage[]): unknown[] {
    return [
      messages.map((m) => m.connectionId),
      messages.map((m) => arrayLiteral(m.recipientDids)),
      messages.map((m) => m.payload),
      messages.map((m) => m.payloadBytes),
      messages.map((m) => m.receivedAt ?? null),
      messages.map((m) => m.idempotencyKey ?? null),
      tag,
    ]
  }
}

function refused(error: unknown): Error {
  return isRefusedValue(error)
    ? new CallError('invalid_params', 'The store refused a value of this message. Nothing was stored.', {}, error)
    : (error as Error)
}

/** unnest would flatten an array of arrays, so each inner one travels as text. */
function arrayLiteral(texts: readonly string[]): string {
  return `{${texts.map((text) => `"${text.replace(/["\\]/g, '\\$&')}"`).join(',')}}`
}

/** DELETE and UPDATE ... RETURNING have no order. */
function sorted(rows: MessageRow[]): StoredMessage[] {
  return rows.sort((a, b) => Number(a[0]) - Number(b[0])).map(toMessage)
}

function toMessage([seq, tag, receivedMs, payload]: MessageRow): StoredMessage {
  return { id: formatId(seq, tag), receivedAt: new Date(receivedMs).toISOString(), encryptedMessage: payload }
}

function formatId(seq: string, tag: number): string {
  return `${seq}-${tag.toString(36)}`
}

function parseId(id: string): { seq: string; tag: number } | undefined {
  const match = /^(\d{1,18})-([0-9a-z]{1,6})$/.exec(id)
  const tag = match ? parseInt(match[2]!, 36) : NaN
  return match && tag < MAX_TAG ? { seq: match[1]!, tag } : undefined
}
