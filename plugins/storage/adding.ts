import { randomInt } from 'node:crypto'
import { CallError } from '../../src/errors.js'
import type { Added, MessageStore, NewMessage } from '../../src/ports.js'
import { createCoalescer } from './coalesce.js'
import { formatId, MAX_TAG } from './message-id.js'
import { hashOf, isLive, OWED_BY_MESSAGES } from './owing.js'
import { isRefusedValue, type Query, type Statement } from './query.js'

/*
 * Adding: concurrent calls become multi-row inserts. With push, the same statement owes the pushes: for a message whose
 * connection has no live session, to the token that came with it or, without one (or with a dead one), to the connection's.
 */

const COLUMNS = '(connection_id, tag, recipient_dids, payload, payload_bytes, received_at, idempotency_key)'
const VALUES = 'u.connection_id, $7::int, u.dids::text[], u.payload, u.bytes, u.received_at, u.idempotency_key'
const ARRAYS = '$1::text[], $2::text[], $3::text[], $4::int[], $5::timestamptz[], $6::text[]'
const NAMES = 'connection_id, dids, payload, bytes, received_at, idempotency_key'

const INSERT = `INSERT INTO queued_messages ${COLUMNS} SELECT ${VALUES} FROM unnest(${ARRAYS}) AS u (${NAMES})`
// Uses queued_messages_idempotency_key. Rows that were there already are not returned.
const UNLESS_KNOWN = 'ON CONFLICT (connection_id, idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING'

// Uses the primary keys of push_outbox, push_tokens, live_sessions and instances.
const insertAndOwe = (onConflict: string) => `WITH u AS MATERIALIZED (
    SELECT * FROM unnest(${ARRAYS}, $8::text[], $9::text[], $10::text[], $11::text[]) AS u (${NAMES}, token_hash, type, project, token)),
  added AS (
    INSERT INTO queued_messages ${COLUMNS} SELECT ${VALUES} FROM u ${onConflict} RETURNING seq, connection_id, idempotency_key),
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
  SELECT a.seq, a.connection_id, a.idempotency_key, (SELECT count(*) FROM reasons) > 0, (SELECT array_agg(token_hash) FROM dead) FROM added a ORDER BY a.seq`

export const addStatements = {
  add: { name: 'add', text: `${INSERT} RETURNING seq` },
  addKeyed: { name: 'add_keyed', text: `${INSERT} ${UNLESS_KNOWN} RETURNING seq, connection_id, idempotency_key` },
  addPushing: { name: 'add_pushing', text: insertAndOwe('') },
  addKeyedPushing: { name: 'add_keyed_pushing', text: insertAndOwe(UNLESS_KNOWN) },
  byKey: {
    name: 'by_key',
    text: `SELECT seq, tag FROM queued_messages WHERE connection_id = $1 AND idempotency_key = $2 AND idempotency_key IS NOT NULL`,
  },
} satisfies Record<string, Statement>

// A batch is bounded so that one of large payloads neither stalls the event loop nor runs into statement_timeout.
const BATCH = { lanes: 2, maxItems: 200, maxBytes: 4 * 1024 * 1024, maxWaitingBytes: 256 * 1024 * 1024, maxWaitMs: 1_000 }

type AddedRow = [seq: string, connectionId?: string, idempotencyKey?: string | null, isPushOwed?: boolean, deadTokens?: string[] | null]

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
      return await (messages.some(({ idempotencyKey }) => idempotencyKey !== undefined) ? addKeyed(messages) : addPlain(messages))
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

  async function addKeyed(messages: NewMessage[]): Promise<Added[]> {
    const rows = await insertUnlessKnown(messages)
    // Rows come back in the order in which they were written, without those whose key was there already.
    let next = 0
    const results = messages.map((message) => {
      const row = rows[next]
      if (row?.[1] !== message.connectionId || row[2] !== (message.idempotencyKey ?? null)) return undefined
      next++
      return toAdded(row, message)
    })
    return Promise.all(messages.map(async (message, i) => results[i] ?? (await addedBefore(message))))
  }

  function insertUnlessKnown(messages: NewMessage[]): Promise<AddedRow[]> {
    return insert(messages, pushes ? addStatements.addKeyedPushing : addStatements.addKeyed)
  }

  function insert(messages: NewMessage[], statement: Statement): Promise<AddedRow[]> {
    return query<AddedRow>(statement, pushes ? [...values(messages), ...tokenValues(messages)] : values(messages))
  }

  async function addedBefore(message: NewMessage): Promise<Added> {
    for (;;) {
      const first = await idOfKey(message.connectionId, message.idempotencyKey!)
      if (first !== undefined) return { id: first }
      // Removed since: its key is free again.
      const [row] = await insertUnlessKnown([message])
      if (row) return toAdded(row, message)
    }
  }

  async function idOfKey(connectionId: string, idempotencyKey: string): Promise<string | undefined> {
    const [first] = await query<[string, number]>(addStatements.byKey, [connectionId, idempotencyKey])
    return first && formatId(...first)
  }

  function toAdded([seq, , , isPushOwed = false, deadTokens]: AddedRow, { pushToken }: NewMessage): Added {
    const id = formatId(seq, tag)
    if (deadTokens && pushToken && deadTokens.includes(hashOf(pushToken))) return { id, push: 'token is dead' }
    return isPushOwed ? { id, push: 'owed' } : { id }
  }

  function values(messages: NewMessage[]): unknown[] {
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

function tokenValues(messages: NewMessage[]): unknown[] {
  const tokens = messages.map(({ pushToken }) => pushToken)
  return [
    tokens.map((token) => (token ? hashOf(token) : null)),
    tokens.map((token) => token?.type ?? null),
    tokens.map((token) => token && (token.project ?? '')),
    tokens.map((token) => token?.token ?? null),
  ]
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
