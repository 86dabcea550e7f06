import type { MessageStore, StoredMessage, Take } from '../../src/ports.js'
import { promised } from '../../src/told.js'
import { intArray, textArray } from './binary-array.js'
import { createCoalescer } from './coalesce.js'
import { AVAILABLE, BY_SEQ, IS_PICKED, LIVE_EPOCH, liveEpoch, RECEIVED_MS, sorted, toMessage, type MessageRow } from './fragments.js'
import type { Query, Statement } from './query.js'

/*
 * Taking. Concurrent takes of a few messages become one statement, as adds do: a statement for each cost more than its rows. Nobody can
 * tell how large a page is before it is read, and eight megabytes for each of many would not fit into memory or time. So together
 * they get only small ones, and a page that turns out larger is taken alone.
 */

/** Not taken in the current session. */
const NOT_TAKEN = `(m.in_flight_taken IS NOT TRUE OR m.in_flight_until <= now()
      OR m.in_flight_epoch IS DISTINCT FROM (SELECT epoch FROM live))`

/** Of `head`, oldest first, what fits into $5 bytes; what could never fit is passed over, or goes alone when it is first. */
const FITS = `CASE WHEN first_bytes > $5 THEN place = 1 ELSE payload_bytes <= $5 AND running_bytes <= $5 END`
const RUNNING = `row_number() OVER by_seq AS place, first_value(payload_bytes) OVER by_seq AS first_bytes,
    sum(payload_bytes) FILTER (WHERE payload_bytes <= $5) OVER by_seq AS running_bytes`
const PICKED = `picked AS (SELECT seq FROM (SELECT seq, payload_bytes, ${RUNNING} FROM head ${BY_SEQ}) h WHERE ${FITS})`
const LOCKED_HEAD = `head AS (
    SELECT m.seq, m.payload_bytes FROM queued_messages m
    WHERE ${AVAILABLE} AND ${NOT_TAKEN}
    ORDER BY m.seq LIMIT $4 FOR UPDATE)`

/** A page of no more is small, whatever was asked for. */
const SMALL_PAGE_BYTES = 64 * 1024
const SMALL_PAGE_MESSAGES = 100

export const takeStatements = {
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
  WHERE ${IS_PICKED}
  RETURNING m.seq, m.tag, ${RECEIVED_MS}, m.payload`,
  },

  // One statement reads and deletes. A caller that waits for rows which another one deletes goes on to the next: LIMIT counts what
  // was locked. SKIP LOCKED would pass over rows that the other locks and then leaves, because they do not fit its bytes, and say
  // "empty" (48 of 80 takes in an experiment). All lock in the order of seq, so nobody waits in a circle.
  takeDeleted: {
    name: 'take_deleted',
    text: `WITH live AS MATERIALIZED (SELECT (${LIVE_EPOCH}) AS epoch), ${LOCKED_HEAD}, ${PICKED}
  DELETE FROM queued_messages m WHERE ${IS_PICKED}
  RETURNING m.seq, m.tag, ${RECEIVED_MS}, m.payload`,
  },

  // $1 connections, $2 limits, $3 age, $4 lease, $5 bytes of a small page. Reads what take reads; of a page that is not small only its size.
  takeMany: {
    name: 'take_many',
    text: `SELECT u.place::int, live.epoch, page.bytes > $5, m.seq, m.tag, m.received_ms, m.payload
  FROM unnest($1::text[], $2::int[]) WITH ORDINALITY AS u (connection_id, amount, place)
  CROSS JOIN LATERAL (SELECT CASE WHEN $4::int > 0 THEN (${liveEpoch('u.connection_id')}) END AS epoch) live
  CROSS JOIN LATERAL (
    SELECT sum(payload_bytes) AS bytes FROM (
      SELECT m.payload_bytes FROM queued_messages m
      WHERE live.epoch IS NULL AND m.connection_id = u.connection_id AND now() - m.accepted_at < $3::interval
      ORDER BY m.seq LIMIT u.amount) head) page
  LEFT JOIN LATERAL (
    SELECT m.seq, m.tag, m.payload, ${RECEIVED_MS} AS received_ms FROM queued_messages m
    WHERE page.bytes <= $5 AND m.connection_id = u.connection_id AND now() - m.accepted_at < $3::interval
    ORDER BY m.seq LIMIT u.amount) m ON true
  ORDER BY u.place, m.seq`,
  },
} satisfies Record<string, Statement>

// Here "bytes" are pages.
const TAKE_BATCH = { atOnce: 2, maxItems: 32, maxBytes: 32, maxWaitingBytes: 100_000, maxWaitMs: 1_000 }

/** The page, or that it must be marked. */
type Taken = StoredMessage[] | 'in a live session'

/** `age`: of the messages that are not expired, as Postgres writes an interval. */
export function createTaking({ query, age }: { query: Query; age: string }): Pick<MessageStore, 'take'> {
  const takeTogether = createCoalescer({
    ...TAKE_BATCH,
    key: ({ connectionId }: Take) => connectionId,
    bytes: () => 1,
    flush: takeBatch,
  })

  return {
    async take(take) {
      const { connectionId, recipientDid, limit, limitBytes, remove, leaseMs } = take
      const values = [connectionId, recipientDid ?? null, age, limit, limitBytes]
      if (remove) return sorted(await query<MessageRow>(takeStatements.takeDeleted, values))
      const mayBeSmall = recipientDid === undefined && limit <= SMALL_PAGE_MESSAGES && limitBytes >= SMALL_PAGE_BYTES
      const together = mayBeSmall ? await promised<Taken | 'not together'>((told) => takeTogether(take, told)) : 'not together'
      const taken = together === 'not together' ? await takeAlone([...values, leaseMs]) : together
      if (taken === 'in a live session') return sorted(await query<MessageRow>(takeStatements.takeMarked, [...values, leaseMs]))
      return taken
    },
  }

  async function takeAlone(values: unknown[]): Promise<Taken> {
    const rows = await query<[epoch: string | null, ...MessageRow]>(takeStatements.take, values)
    if (rows[0]![0] !== null) return 'in a live session'
    return rows.filter(([, seq]) => seq !== null).map(([, ...row]) => toMessage(row))
  }

  async function takeBatch(takes: Take[]): Promise<(Taken | 'not together')[]> {
    if (takes.length === 1) return ['not together'] // its page may be of any size then
    const pages: (Taken | 'not together')[] = takes.map(() => [])
    const rows = await query<[place: number, epoch: string | null, isLarge: boolean | null, ...MessageRow]>(takeStatements.takeMany, [
      textArray(takes.map(({ connectionId }) => connectionId)),
      intArray(takes.map(({ limit }) => limit)),
      age,
      takes[0]!.leaseMs,
      SMALL_PAGE_BYTES,
    ])
    for (const [place, epoch, isLarge, ...row] of rows) {
      if (epoch !== null) pages[place - 1] = 'in a live session'
      else if (isLarge) pages[place - 1] = 'not together'
      else if (row[0] !== null) (pages[place - 1] as StoredMessage[]).push(toMessage(row))
    }
    return pages
  }
}
