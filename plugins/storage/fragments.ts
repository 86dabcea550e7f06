import type { JsonText } from '../../src/json.js'
import type { StoredMessage } from '../../src/ports.js'
import { formatId } from './message-id.js'

/* Parts that statements about messages share, and the rows that they give. */

/**
 * That the instance `i` has the session `s`. Not a plain "=", which a merge join could use: for that Postgres considers the index on instance_id
 * from end to end, and read all sessions by it to find one when it believed that there are few (docs/decisions/0024).
 */
export const HAS_SESSION = 'i.instance_id = ANY (ARRAY[s.instance_id])'

/** The epoch of the connection's live session, or no row. Uses live_sessions_pkey and instances_pkey. */
export const liveEpoch = (connectionId: string) => `
  SELECT s.epoch FROM live_sessions s LEFT JOIN instances i ON ${HAS_SESSION}
  WHERE s.connection_id = ${connectionId} AND (s.expires_at > now() OR i.lease_until > now())`
export const LIVE_EPOCH = liveEpoch('$1')

/**
 * What take may hand out: not expired, addressed to $2 (when given). The age is compared and not accepted_at, so that the index on
 * it, which holds all queues, is not even considered.
 */
export const AVAILABLE = `m.connection_id = $1 AND now() - m.accepted_at < $3::interval
    AND ($2::text IS NULL OR $2 = ANY (m.recipient_dids))`
/** Milliseconds since the epoch, because parsing a timestamptz in Node costs more than the rest of the row. */
export const RECEIVED_MS = `(extract(epoch FROM coalesce(received_at, accepted_at)) * 1000)::float8`

/**
 * The row of `alias` that a row of `of` names by the connection and `column`, each looked up in the primary key. Neither condition is a plain "=",
 * with which Postgres may also begin at the other end: it read all that there is, of all queues, when it believed that it is little (IS_PICKED).
 */
export const isRowOf = (alias: string, of: string, column: string) =>
  `${alias}.connection_id = ANY (ARRAY[${of}.connection_id]) AND ${alias}.${column} BETWEEN ${of}.${column} AND ${of}.${column}`

/**
 * The messages of $1 that `picked` names. Also between the first and the last of them, because what Postgres makes of a list depends on how
 * many messages it believes there are: in a table that was nearly empty when it was vacuumed it read the whole queue, and compared.
 */
export const IS_PICKED = `m.connection_id = $1 AND m.seq = ANY (ARRAY (SELECT seq FROM picked))
    AND m.seq BETWEEN (SELECT min(seq) FROM picked) AND (SELECT max(seq) FROM picked)`

export const BY_SEQ = `WINDOW by_seq AS (ORDER BY seq ROWS UNBOUNDED PRECEDING)`

export type MessageRow = [seq: string, tag: number, receivedMs: number, payload: JsonText]

/** DELETE and UPDATE ... RETURNING have no order. */
export function sorted(rows: MessageRow[]): StoredMessage[] {
  return rows.sort((a, b) => Number(a[0]) - Number(b[0])).map(toMessage)
}

export function toMessage([seq, tag, receivedMs, payload]: MessageRow): StoredMessage {
  return { id: formatId(seq, tag), receivedAt: new Date(receivedMs).toISOString(), encryptedMessage: payload }
}
