import { and, asc, count, desc, eq, gt, gte, inArray, lte, min, sql, sum, type SQL } from 'drizzle-orm'
import { drizzle } from 'drizzle-orm/node-postgres'
import type { Pool } from 'pg'
import { instances, liveSessions, queuedMessages } from '../../drizzle/schema.js'
import { CallError } from '../../src/errors.js'
import type { Administration, MessageMetadata, Page, QueueSummary, Selection } from '../../src/ports.js'
import { formatId, parseId } from './message-id.js'
import { counts, hasSession } from './postgres-sessions.js'
import { MAX_DELIVERIES } from './postgres-store.js'
import { attempt } from './query.js'

/*
 * Nothing here is on the hot path, and it must not be in its way: it has a pool of its own (see index.ts), reads without locks, and
 * writes in short transactions. What is keyed by connection_id uses the primary key of queued_messages. What is not reads the whole
 * table in one sequential scan by one process: an index that answered it would have to be written with every message, every take and
 * every delivery (docs/decisions/0022).
 */

/** One transaction of a purge: a few milliseconds for small messages, and some tens for the largest. */
const PURGE_MESSAGES = 1_000
const PURGE_BYTES = 32 * 1024 * 1024

const m = queuedMessages
const receivedAt = sql`coalesce(${m.receivedAt}, ${m.acceptedAt})`.mapWith(m.acceptedAt)

const summary = {
  messages: count(),
  bytes: sum(m.payloadBytes).mapWith(Number),
  oldestReceivedAt: sql<Date | null>`min(${receivedAt})`.mapWith(m.acceptedAt),
  oldestAcceptedAt: min(m.acceptedAt),
  parked: sql`count(*) FILTER (WHERE ${m.deliveries} >= ${MAX_DELIVERIES})`.mapWith(Number),
}
const metadata = {
  ...{ connectionId: m.connectionId, seq: m.seq, tag: m.tag, bytes: m.payloadBytes, deliveries: m.deliveries, acceptedAt: m.acceptedAt },
  recipientDids: sql`cardinality(${m.recipientDids})`.mapWith(Number),
  receivedAt,
}

/** Whole numbers, so that a cursor is exact; the larger comes first. */
const ORDERS = {
  depth: sql`count(*)`,
  bytes: sql`sum(${m.payloadBytes})`,
  age: sql`(- extract(epoch FROM min(${m.acceptedAt})) * 1000000)::bigint`,
}

/** `pool` has time for a scan. */
export function createPostgresAdministration({ pool }: { pool: Pool }): Administration {
  const db = drizzle(pool)

  return {
    async connections({ by, limit, cursor }) {
      const key = ORDERS[by]
      const after = readCursor(cursor, by)
      const rows = await scan((tx) =>
        tx
          .select({ connectionId: m.connectionId, key: sql<string>`${key}::text`, ...summary })
          .from(m)
          .groupBy(m.connectionId)
          .having(after && sql`(${key}, ${m.connectionId}) < (${after.key}::numeric, ${after.connectionId})`)
          .orderBy(desc(key), desc(m.connectionId))
          .limit(limit + 1),
      )
      const live = await liveOf(rows.map((row) => row.connectionId))
      return page(
        rows,
        limit,
        (row) => ({ connectionId: row.connectionId, ...toSummary(row), isLive: live.has(row.connectionId) }),
        (row) => [by, row.key, row.connectionId],
      )
    },

    async summary(connectionId) {
      const [row] = await attempt(db.select(summary).from(m).where(eq(m.connectionId, connectionId)))
      return toSummary(row!)
    },

    // Uses live_sessions_pkey and instances_pkey.
    async liveSession(connectionId) {
      const [row] = await attempt(
        db
          .select()
          .from(liveSessions)
          .leftJoin(instances, hasSession)
          .where(and(eq(liveSessions.connectionId, connectionId), counts)),
      )
      if (!row) return undefined
      const { sessionId, instanceId, openedAt, expiresAt } = row.live_sessions
      return {
        sessionId,
        ...(instanceId === null ? {} : { instanceId }),
        since: openedAt.toISOString(),
        ...(expiresAt === null ? {} : { expiresAt: expiresAt.toISOString() }),
      }
    },

    async messages({ connectionId, limit, cursor }) {
      const after = readCursor(cursor, 'messages')
      const epoch = sql`(SELECT ${liveSessions.epoch} FROM ${liveSessions} LEFT JOIN ${instances} ON ${eq(instances.instanceId, liveSessions.instanceId)}
        WHERE ${and(eq(liveSessions.connectionId, connectionId), counts)})`
      const rows = await attempt(
        db
          .select({
            ...metadata,
            isInFlight: sql<boolean | null>`${m.inFlightUntil} > now() AND ${m.inFlightEpoch} = ${epoch}`,
            isTaken: m.inFlightTaken,
            until: m.inFlightUntil,
          })
          .from(m)
          .where(and(eq(m.connectionId, connectionId), after && gt(m.seq, Number(after.key))))
          .orderBy(asc(m.seq))
          .limit(limit + 1),
      )
      return page(
        rows,
        limit,
        ({ isInFlight, isTaken, until, ...row }) => {
          return { ...toMetadata(row), ...(isInFlight && { inFlight: { by: isTaken ? 'take' : 'delivery', until: until!.toISOString() } }) }
        },
        (row) => ['messages', String(row.seq), ''],
      )
    },

    async parked({ limit, cursor }) {
      const after = readCursor(cursor, 'parked')
      const isAfter = after && sql`(${m.connectionId}, ${m.seq}) > (${after.connectionId}, ${after.key}::bigint)`
      const rows = await scan((tx) =>
        tx
          .select(metadata)
          .from(m)
          .where(and(gte(m.deliveries, MAX_DELIVERIES), isAfter))
          .orderBy(asc(m.connectionId), asc(m.seq))
          .limit(limit + 1),
      )
      return page(
        rows,
        limit,
        (row) => ({ connectionId: row.connectionId, ...toMetadata(row) }),
        (row) => ['parked', String(row.seq), row.connectionId],
      )
    },

    async measure(selection) {
      const [row] = await attempt(
        db
          .select({ messages: count(), bytes: sum(m.payloadBytes).mapWith(Number), upTo: sql<string | null>`max(${m.seq})` })
          .from(m)
          .where(selected(selection)),
      )
      return row?.upTo ? { messages: row.messages, bytes: row.bytes, upTo: row.upTo } : { messages: 0, bytes: 0 }
    },

    // In the order of the primary key, like all that locks several messages: nobody waits in a circle.
    async purge({ upTo, ...selection }) {
      const { rows } = await attempt(
        db.execute<{ seq: string; tag: number; bytes: number }>(sql`
          WITH head AS (
            SELECT ${m.seq} AS seq, ${m.payloadBytes} AS bytes FROM ${m} WHERE ${and(selected(selection), lte(m.seq, Number(upTo)))}
            ORDER BY ${m.seq} LIMIT ${PURGE_MESSAGES} FOR UPDATE),
          picked AS (
            SELECT seq FROM (SELECT seq, row_number() OVER by_seq AS place, sum(bytes) OVER by_seq AS running_bytes FROM head
              WINDOW by_seq AS (ORDER BY seq ROWS UNBOUNDED PRECEDING)) h
            WHERE place = 1 OR running_bytes <= ${PURGE_BYTES})
          DELETE FROM ${m} WHERE ${m.connectionId} = ${selection.connectionId} AND ${m.seq} = ANY (ARRAY (SELECT seq FROM picked))
            AND ${m.seq} BETWEEN (SELECT min(seq) FROM picked) AND (SELECT max(seq) FROM picked)
          RETURNING ${m.seq} AS seq, ${m.tag} AS tag, ${m.payloadBytes} AS bytes`),
      )
      return { ids: rows.map(({ seq, tag }) => formatId(seq, tag)), bytes: rows.reduce((bytes, row) => bytes + row.bytes, 0) }
    },
  }

  /**
   * The pool's connections are kept to indexes; here the table is read from end to end, which is faster than by the index (parked among
   * a million messages: 0.4 instead of 2.2 s) and, through a ring of a few buffers, leaves the pages of the hot path where they are.
   */
  async function scan<Row>(query: (tx: Parameters<Parameters<typeof db.transaction>[0]>[0]) => PromiseLike<Row[]>): Promise<Row[]> {
    return attempt(
      db.transaction(async (tx) => {
        await tx.execute(sql`SET LOCAL enable_seqscan = on; SET LOCAL enable_indexscan = off; SET LOCAL enable_indexonlyscan = off`)
        return query(tx)
      }),
    )
  }

  /** Which of them have a session that counts. Uses live_sessions_pkey and instances_pkey. */
  async function liveOf(connectionIds: string[]): Promise<Set<string>> {
    if (connectionIds.length === 0) return new Set()
    const rows = await attempt(
      db
        .select({ connectionId: liveSessions.connectionId })
        .from(liveSessions)
        .leftJoin(instances, hasSession)
        .where(and(inArray(liveSessions.connectionId, connectionIds), counts)),
    )
    return new Set(rows.map((row) => row.connectionId))
  }
}

/** The age is compared and not accepted_at, so that the index on it, which holds all queues, is not even considered. */
function selected({ connectionId, olderThanSeconds, ids }: Selection): SQL | undefined {
  const known = ids?.flatMap((id) => parseId(id) ?? [])
  return and(
    eq(m.connectionId, connectionId),
    olderThanSeconds === undefined ? undefined : sql`now() - ${m.acceptedAt} >= ${olderThanSeconds} * interval '1 second'`,
    known &&
      sql`(${m.seq}, ${m.tag}) IN (SELECT * FROM unnest(${sql.param(known.map(({ seq }) => seq))}::bigint[], ${sql.param(known.map(({ tag }) => tag))}::int[]))`,
  )
}

interface SummaryRow {
  messages: number
  bytes: number | null
  oldestReceivedAt: Date | null
  oldestAcceptedAt: Date | null
  parked: number
}

function toSummary({ messages, bytes, oldestReceivedAt, oldestAcceptedAt, parked }: SummaryRow): QueueSummary {
  return {
    ...{ messages, bytes: bytes ?? 0, parked },
    ...(oldestReceivedAt && { oldestReceivedAt: oldestReceivedAt.toISOString() }),
    ...(oldestAcceptedAt && { oldestAcceptedAt: oldestAcceptedAt.toISOString() }),
  }
}

interface MetadataRow {
  seq: number
  tag: number
  bytes: number
  recipientDids: number
  receivedAt: Date
  acceptedAt: Date
  deliveries: number
}

function toMetadata({ seq, tag, bytes, recipientDids, receivedAt, acceptedAt, deliveries }: MetadataRow): MessageMetadata {
  return {
    ...{ id: formatId(String(seq), tag), bytes, recipientDids, deliveries },
    ...{ receivedAt: receivedAt.toISOString(), acceptedAt: acceptedAt.toISOString() },
  }
}

/** Where a page ended: of which list, the number that it is sorted by, and the connection. */
type Cursor = [list: string, key: string, connectionId: string]

/** @param rows one more than the page holds, when there is a next one */
function page<Row, Item>(rows: Row[], limit: number, toItem: (row: Row) => Item, toCursor: (row: Row) => Cursor): Page<Item> {
  const items = rows.slice(0, limit).map(toItem)
  if (rows.length <= limit) return { items }
  return { items, next: Buffer.from(JSON.stringify(toCursor(rows[limit - 1]!))).toString('base64url') }
}

/** It came from a page of ours, or from anybody. */
function readCursor(text: string | undefined, list: string): { key: string; connectionId: string } | undefined {
  if (text === undefined) return undefined
  let cursor: unknown
  try {
    cursor = JSON.parse(Buffer.from(text, 'base64url').toString())
  } catch {
    // refused below
  }
  const [of, key, connectionId] = Array.isArray(cursor) ? (cursor as unknown[]) : []
  if (
    of !== list ||
    typeof key !== 'string' ||
    !/^-?\d{1,18}$/.test(key) ||
    typeof connectionId !== 'string' ||
    connectionId.includes('\0')
  )
    throw new CallError('invalid_params', 'Invalid params: cursor is not the "next" of a page of this list.', { field: 'cursor' })
  return { key, connectionId }
}
