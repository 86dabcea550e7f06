import { randomInt } from 'node:crypto'
import { CallError } from '../../src/errors.js'
import type { Added, MessageStore, NewMessage } from '../../src/ports.js'
import { bigintArray, intArray, textArray } from './binary-array.js'
import { createCoalescer } from './coalesce.js'
import { RECEIVED_MS } from './fragments.js'
import { formatId, MAX_TAG, parseId } from './message-id.js'
import { hashOf, isLive, OWED_BY_MESSAGES } from './owing.js'
import { isRefusedValue, type Query, type Statement } from './query.js'

/*
 * Adding: concurrent calls become multi-row inserts. With push, the same statement owes the pushes: for a message whose
 * connection has no live session, to the token that came with it or, without one (or with a dead one), to the connection's.
 *
 * A message that this process can deliver itself is marked as pushed by the insert, so that no `claim` has to read and write it again.
 */

const COLUMNS = `(connection_id, tag, recipient_dids, payload, payload_bytes, received_at, idempotency_key,
    in_flight_epoch, in_flight_until, in_flight_taken, deliveries)`
const VALUES = `u.connection_id, $8::int, u.dids::text[], u.payload, u.bytes, u.received_at::timestamptz, u.idempotency_key,
    CASE WHEN claimed.yes THEN u.epoch END, CASE WHEN claimed.yes THEN now() + $9::int * interval '1 ms' END,
    CASE WHEN claimed.yes THEN false END, CASE WHEN claimed.yes THEN 1 ELSE 0 END`
type Source = readonly [arrays: string, names: string]
const PLAIN: Source = [
  '$1::text[], $2::text[], $3::int[], $4::text[], $5::text[], $6::bigint[], $7::bigint[]',
  'connection_id, dids, bytes, received_at, idempotency_key, epoch, after_seq',
]
/** More arrays, the parameters from `first` on, and the columns that they become. */
const plus = ([arrays, names]: Source, first: number, type: string, ...more: string[]): Source => [
  `${arrays}, ${more.map((_, i) => `$${first + i}::${type}[]`).join(', ')}`,
  `${names}, ${more.join(', ')}`,
]
const withTokens = (source: Source, first: number) => plus(source, first, 'text', 'token_hash', 'type', 'project', 'token')
/** The last of all parameters: pg copies what it has into half as much again whenever another one does not fit. */
const withPayloads = (source: Source, last: number) => plus(source, last, 'text', 'payload')

/**
 * Whether the session with this epoch may be given the message at once: it is the current one, and nothing that it was not given came before.
 * What it was given last is named by after_seq, so that there is mostly nothing to be read. Uses live_sessions_pkey and the primary key;
 * OFFSET 0 keeps Postgres from making a join of it, for which it may read the whole queue.
 */
const CLAIMED = `LEFT JOIN LATERAL (
    SELECT true AS yes FROM live_sessions s WHERE u.epoch IS NOT NULL AND s.connection_id = u.connection_id AND s.epoch = u.epoch AND NOT EXISTS (
      SELECT FROM queued_messages m WHERE m.connection_id = s.connection_id AND m.seq > coalesce(u.after_seq, s.since_seq)
        AND m.in_flight_epoch IS DISTINCT FROM s.epoch AND NOT pg_visible_in_snapshot(m.accepted_by, s.since) OFFSET 0)
    LIMIT 1) claimed ON true`
const CLAIMED_MS = `CASE WHEN in_flight_epoch IS NOT NULL THEN ${RECEIVED_MS} END`
const RETURNED = `seq, ${CLAIMED_MS} AS received_ms, connection_id, idempotency_key`

/** What only UNLESS needs. */
const BOUNDED = plus(PLAIN, 10, 'bigint', 'at_most_bytes')

const insertFrom = ([arrays, names]: Source) =>
  `INSERT INTO queued_messages ${COLUMNS} SELECT ${VALUES} FROM unnest(${arrays}) AS u (${names}) ${CLAIMED}`
/**
 * Rows that are not written are not returned.
 * A key is known by its message, or by removed_keys. One that is known when the statement begins is not written at all: its message may be
 * removed before the insert comes to it, and what its removal left behind is not seen by this statement.
 * Of a queue no more is read than tells that it has more than $11 messages. What u asks is asked within each subquery, where Postgres looks
 * at it first; as a condition of the join it would look up all rows, also those of which nothing is asked.
 * Uses queued_messages_idempotency_key, the primary key of removed_keys, and that of queued_messages.
 */
const UNLESS = `LEFT JOIN LATERAL (
    SELECT true AS yes FROM (
      SELECT FROM queued_messages m
      WHERE u.idempotency_key IS NOT NULL AND m.connection_id = u.connection_id AND m.idempotency_key = u.idempotency_key
      UNION ALL SELECT FROM removed_keys k
      WHERE u.idempotency_key IS NOT NULL AND k.connection_id = u.connection_id AND k.idempotency_key = u.idempotency_key
        AND k.payload_hash = hashtextextended(u.payload, 0)) one
    LIMIT 1) known ON true
  LEFT JOIN LATERAL (
    SELECT true AS yes FROM (
      SELECT payload_bytes FROM queued_messages m
      WHERE u.at_most_bytes IS NOT NULL AND m.connection_id = u.connection_id ORDER BY m.seq LIMIT $11::int + 1) head
    HAVING count(*) > $11 OR sum(payload_bytes) > u.at_most_bytes) deep ON true
  WHERE known.yes IS NULL AND deep.yes IS NULL
  ON CONFLICT (connection_id, idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING`

// Uses the primary keys of push_outbox, push_tokens, live_sessions and instances.
const insertAndOwe = ([arrays, names]: Source, unless: string) => `WITH u AS MATERIALIZED (
    SELECT * FROM unnest(${arrays}) AS u (${names})),
  added AS (
    INSERT INTO queued_messages ${COLUMNS} SELECT ${VALUES} FROM u ${CLAIMED} ${unless} RETURNING ${RETURNED}),
  dead AS MATERIALIZED (
    SELECT o.token_hash FROM push_outbox o WHERE o.token_hash IN (SELECT token_hash FROM u WHERE token_hash IS NOT NULL) AND o.state = 'dead'),
  given AS MATERIALIZED (
    SELECT DISTINCT connection_id, token_hash, type, project, token FROM u
    WHERE token_hash IS NOT NULL AND token_hash NOT IN (SELECT token_hash FROM dead)),
  offline AS (SELECT a.connection_id, min(a.seq) AS from_seq FROM added a WHERE NOT ${isLive('a')} GROUP BY a.connection_id),
  targets AS (
    SELECT * FROM given
    UNION ALL
    SELECT t.connection_id, t.token_hash, t.type, t.project, t.token FROM push_tokens t
    WHERE t.connection_id IN (SELECT connection_id FROM u) AND t.token IS NOT NULL
      AND t.connection_id NOT IN (SELECT connection_id FROM given)),
  ${OWED_BY_MESSAGES},
  kept AS ( -- what setPushToken registered stays
    INSERT INTO push_tokens AS t (connection_id, token_hash, type, project, token, ending, registered)
    SELECT DISTINCT ON (g.connection_id) g.connection_id, g.token_hash, g.type, g.project, g.token, right(g.token, 6), false
    FROM given g LEFT JOIN push_tokens p ON p.connection_id = g.connection_id
    WHERE p.connection_id IS NULL OR p.token IS NULL OR NOT p.registered AND p.token_hash <> g.token_hash
    ORDER BY g.connection_id
    ON CONFLICT (connection_id) DO UPDATE SET token_hash = excluded.token_hash, type = excluded.type, project = excluded.project,
      token = excluded.token, ending = excluded.ending, registered = false, updated_at = now()
    WHERE t.token IS NULL OR NOT t.registered)
  SELECT a.seq, a.received_ms, a.connection_id, a.idempotency_key, (SELECT count(*) FROM reasons) > 0, (SELECT array_agg(token_hash) FROM dead) FROM added a ORDER BY a.seq`

export const addStatements = {
  add: { name: 'add', text: `${insertFrom(withPayloads(PLAIN, 10))} RETURNING seq, ${CLAIMED_MS}` },
  addUnless: { name: 'add_unless', text: `${insertFrom(withPayloads(BOUNDED, 12))} ${UNLESS} RETURNING ${RETURNED}` },
  addPushing: { name: 'add_pushing', text: insertAndOwe(withPayloads(withTokens(PLAIN, 10), 14), '') },
  addUnlessPushing: { name: 'add_unless_pushing', text: insertAndOwe(withPayloads(withTokens(BOUNDED, 12), 16), UNLESS) },
  byKey: {
    name: 'by_key',
    text: `SELECT seq, tag FROM (
    SELECT seq, tag, 1 AS place FROM removed_keys
    WHERE connection_id = $1 AND idempotency_key = $2 AND payload_hash = hashtextextended($3, 0)
    UNION ALL SELECT seq, tag, 2 FROM queued_messages WHERE connection_id = $1 AND idempotency_key = $2) known ORDER BY place LIMIT 1`,
  },
} satisfies Record<string, Statement>

// A batch is bounded so that one of large payloads neither stalls the event loop nor runs into statement_timeout.
const BATCH = { lanes: 2, maxItems: 200, maxBytes: 1024 * 1024, maxWaitingBytes: 256 * 1024 * 1024, maxWaitMs: 1_000 }

type AddedRow = [
  seq: string,
  receivedMs: number | null,
  connectionId?: string,
  idempotencyKey?: string | null,
  isPushOwed?: boolean,
  deadTokens?: string[] | null,
]

export function createAdding({ query, pushes }: { query: Query; pushes: boolean }): Pick<MessageStore, 'add' | 'idOfKey'> {
  const tag = randomInt(MAX_TAG)
  const add = createCoalescer({
    ...BATCH,
    key: (message: NewMessage) => message.connectionId,
    bytes: (message: NewMessage) => message.payloadBytes,
    flush: addBatch,
  })
  return { add, idOfKey }

  /** Each message is answered after the commit of its own row. One that Postgres refuses fails alone. */
  async function addBatch(messages: NewMessage[]): Promise<(Added | Error)[]> {
    try {
      const isPlain = messages.every(({ idempotencyKey, ifAtMost }) => idempotencyKey === undefined && !ifAtMost)
      return await (isPlain ? addPlain(messages) : addUnless(messages))
    } catch (error) {
      if (messages.length === 1) return [error instanceof CallError ? error : refused(error)]
      if (!isRefusedValue(error)) throw error
      const results: (Added | Error)[] = []
      for (const message of messages) results.push(...(await addBatch([message])))
      return results
    }
  }

  async function addPlain(messages: NewMessage[]): Promise<Added[]> {
    const rows = await insert(messages, pushes ? addStatements.addPushing : addStatements.add)
    return rows.map((row, i) => toAdded(row, messages[i]!))
  }

  async function addUnless(messages: NewMessage[]): Promise<(Added | Error)[]> {
    // A key twice: with another payload it may be another message, and rows that come back are told apart by their keys.
    const keys = new Set<string>()
    const firsts = messages.filter(({ connectionId, idempotencyKey }) => {
      if (idempotencyKey === undefined) return true
      const key = `${connectionId}\n${idempotencyKey}`
      return !keys.has(key) && keys.add(key)
    })
    const rows = await insertUnless(firsts)
    // They come back in the order in which they were written, without those that were not.
    const results = new Map<NewMessage, Added>()
    for (const message of firsts) {
      const row = rows[results.size]
      if (row?.[2] === message.connectionId && row[3] === (message.idempotencyKey ?? null)) results.set(message, toAdded(row, message))
    }
    const all: (Added | Error)[] = []
    for (const message of messages) all.push(results.get(message) ?? (await notAdded(message)))
    return all
  }

  function insertUnless(messages: NewMessage[]): Promise<AddedRow[]> {
    return insert(messages, pushes ? addStatements.addUnlessPushing : addStatements.addUnless, atMostValues(messages))
  }

  function insert(messages: NewMessage[], statement: Statement, more: unknown[] = []): Promise<AddedRow[]> {
    const payloads = textArray(messages.map(({ payload }) => payload))
    return query<AddedRow>(statement, [...values(messages), ...more, ...(pushes ? tokenValues(messages) : []), payloads])
  }

  /** Why not: its key was known, or there is too much before it. */
  async function notAdded(message: NewMessage): Promise<Added | Error> {
    for (;;) {
      const first = await idOfKey(message)
      if (first !== undefined) return { id: first }
      if (message.ifAtMost)
        return new CallError('quota_exceeded', 'The queue of this connection has more than was to be added to. Nothing was stored.')
      // Its key has expired since and is free again.
      const [row] = await insertUnless([message])
      if (row) return toAdded(row, message)
    }
  }

  async function idOfKey({ connectionId, idempotencyKey, payload }: NewMessage): Promise<string | undefined> {
    if (idempotencyKey === undefined) return undefined
    const [first] = await query<[string, number]>(addStatements.byKey, [connectionId, idempotencyKey, payload])
    return first && formatId(...first)
  }

  function toAdded([seq, receivedMs, , , isPushOwed = false, deadTokens]: AddedRow, { pushToken }: NewMessage): Added {
    const added: Added = { id: formatId(seq, tag) }
    if (receivedMs !== null) added.claimed = { receivedAt: new Date(receivedMs).toISOString() }
    if (deadTokens && pushToken && deadTokens.includes(hashOf(pushToken))) added.push = 'token is dead'
    else if (isPushOwed) added.push = 'owed'
    return added
  }

  function values(messages: NewMessage[]): unknown[] {
    const sessions = sessionsOf(messages)
    return [
      textArray(messages.map((m) => m.connectionId)),
      textArray(messages.map((m) => arrayLiteral(m.recipientDids))),
      intArray(messages.map((m) => m.payloadBytes)),
      textArray(messages.map((m) => m.receivedAt)),
      textArray(messages.map((m) => m.idempotencyKey)),
      bigintArray(sessions.map((session) => session?.epoch)),
      bigintArray(sessions.map((session) => session?.after && parseId(session.after)?.seq)),
      tag,
      sessions.find((session) => session)?.leaseMs ?? 0,
    ]
  }
}

/**
 * The session that each message may be claimed for. Not one that stands behind another message to the same connection which is not: rows
 * of the statement itself are not seen by it.
 */
function sessionsOf(messages: readonly NewMessage[]): (NewMessage['claimFor'] | undefined)[] {
  const unclaimed = new Set<string>()
  return messages.map(({ connectionId, claimFor }) => {
    if (claimFor && !unclaimed.has(connectionId)) return claimFor
    unclaimed.add(connectionId)
    return undefined
  })
}

/** The bound of one message is that of all to its connection: they are written or not, so the rows that come back tell which they are. */
function atMostValues(messages: readonly NewMessage[]): unknown[] {
  const bounds = new Map<string, NewMessage['ifAtMost']>()
  for (const { connectionId, ifAtMost } of messages) if (ifAtMost) bounds.set(connectionId, ifAtMost)
  const [bound] = bounds.values()
  return [bigintArray(messages.map(({ connectionId }) => bounds.get(connectionId)?.bytes)), bound?.messages ?? 0]
}

function tokenValues(messages: NewMessage[]): unknown[] {
  const tokens = messages.map(({ pushToken }) => pushToken)
  return [
    textArray(tokens.map((token) => token && hashOf(token))),
    textArray(tokens.map((token) => token?.type)),
    textArray(tokens.map((token) => token && (token.project ?? ''))),
    textArray(tokens.map((token) => token?.token)),
  ]
}

function refused(error: unknown): Error {
  return isRefusedValue(error)
    ? new CallError('invalid_params', 'The store refused a value of this message. Nothing was stored.', {}, error)
    : (error as Error)
}

/** unnest would flatten an array of arrays, so each inner one travels as its text. */
function arrayLiteral(texts: readonly string[]): string {
  return `{${texts.map(quoted).join(',')}}`
}

const TO_ESCAPE = /["\\]/g
const quoted = (text: string) => `"${text.search(TO_ESCAPE) < 0 ? text : text.replace(TO_ESCAPE, '\\$&')}"`
