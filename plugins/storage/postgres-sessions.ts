import { randomUUID } from 'node:crypto'
import { and, eq, gt, isNull, lte, or, sql } from 'drizzle-orm'
import { drizzle } from 'drizzle-orm/node-postgres'
import type { Pool } from 'pg'
import { instances, liveSessions } from '../../drizzle/schema.js'
import type { SessionDirectory } from '../../src/ports.js'
import { isRowOf } from './fragments.js'
import { afterSessionMs, owedBySessions } from './owing.js'
import { deliverable } from './postgres-store.js'
import { attempt, type Query, type Statement } from './query.js'

/** How long the sessions of a crashed instance still count. The janitor renews it every 5 s. */
const INSTANCE_LEASE_MS = 25_000

/**
 * Sessions that one statement ends: all of an instance that has no more, and no more than a statement has time for, which may owe a push
 * for each (50,000 took 1.05 s of the 1.2 s that there are).
 */
const END_BATCH = 5_000

const IS_RENEWED = `(s.session_id = excluded.session_id AND s.expires_at > now() AND excluded.expires_at IS NOT NULL)`

const open = {
  name: 'open_session',
  // Uses live_sessions_pkey, and the primary key of queued_messages backwards from the newest message. A statement ends
  // within 1.2 s (statement_timeout), so what is committed after this one was accepted less than 5 s before it.
  // `former` is read by the SELECT, not only by RETURNING: there the row it locks has been replaced by this very statement. A session
  // without a socket that is opened again under its name is renewed and stays the same, with what it has in flight.
  text: `WITH former AS (SELECT epoch, instance_id FROM live_sessions WHERE connection_id = $1 FOR UPDATE)
  INSERT INTO live_sessions AS s (connection_id, session_id, instance_id, expires_at, since, since_seq)
  SELECT $1, $2, $3::uuid, now() + $4::int * interval '1 ms', pg_current_snapshot(), coalesce((
    SELECT seq FROM queued_messages WHERE connection_id = $1 AND now() - accepted_at > interval '5 seconds' ORDER BY seq DESC LIMIT 1), 0)
  FROM (SELECT count(*) FROM former) locked
  ON CONFLICT (connection_id) DO UPDATE SET session_id = excluded.session_id, instance_id = excluded.instance_id, expires_at = excluded.expires_at,
    opened_at = CASE WHEN ${IS_RENEWED} THEN s.opened_at ELSE now() END,
    since = CASE WHEN ${IS_RENEWED} THEN s.since ELSE excluded.since END,
    since_seq = CASE WHEN ${IS_RENEWED} THEN s.since_seq ELSE excluded.since_seq END,
    epoch = CASE WHEN ${IS_RENEWED} THEN s.epoch ELSE nextval('live_sessions_epoch_seq') END -- after the row is locked: excluded.epoch was drawn before
  RETURNING s.epoch, (SELECT epoch FROM former), (SELECT instance_id FROM former)`,
}

/** The statements that end sessions. With pushes, each owes one to those that may have left mail behind, in the same transaction. */
const ending = ({ windowMs }: { windowMs?: number }) => {
  const statement = (name: string, before: string, select: string): Statement => ({
    name: windowMs === undefined ? name : `${name}_owing`,
    text: `WITH ${before}${windowMs === undefined ? '' : `, ${owedBySessions(afterSessionMs(windowMs), false)}`} ${select}`,
  })
  return {
    // A session that no longer counts is deleted too, but there was nothing to end.
    close: statement(
      'close_session',
      `ended AS (
    DELETE FROM live_sessions s WHERE s.connection_id = $1 AND ($2::bigint IS NULL OR s.epoch = $2) AND ($3::text IS NULL OR s.session_id = $3)
    RETURNING s.connection_id, s.epoch, s.instance_id, s.expires_at)`,
      `SELECT s.epoch, s.instance_id, (s.expires_at > now() OR EXISTS (SELECT FROM instances i WHERE i.instance_id = s.instance_id AND i.lease_until > now()))
  FROM ended s`,
    ),
    closeMany: statement(
      'close_sessions',
      `ended AS (
    DELETE FROM live_sessions s USING unnest($1::text[], $2::bigint[]) AS gone (connection_id, epoch)
    WHERE ${isRowOf('s', 'gone', 'epoch')} RETURNING s.connection_id)`,
      'SELECT FROM ended',
    ),
    // Uses live_sessions_instance_id.
    closeAll: statement(
      'close_all_sessions',
      `ended AS (
    DELETE FROM live_sessions WHERE connection_id = ANY (ARRAY (SELECT connection_id FROM live_sessions WHERE instance_id = $1 LIMIT $2))
    RETURNING connection_id)`,
      'SELECT FROM ended',
    ),
    // Uses live_sessions_expires_at.
    expired: statement(
      'end_expired_sessions',
      `ended AS (
    DELETE FROM live_sessions WHERE connection_id = ANY (ARRAY (
      SELECT connection_id FROM live_sessions WHERE expires_at <= now() LIMIT $1 FOR UPDATE SKIP LOCKED))
    RETURNING connection_id)`,
      'SELECT FROM ended',
    ),
    // A crashed instance ends nothing by itself. Its sessions stay, for it may only have stalled and come back; they are seen to once.
    missed: statement(
      'miss_sessions',
      `ended AS (
    UPDATE live_sessions SET missed = true WHERE connection_id = ANY (ARRAY (
      SELECT s.connection_id FROM instances i JOIN live_sessions s ON s.instance_id = i.instance_id
      WHERE i.lease_until <= now() AND i.missed_at IS NULL AND NOT s.missed LIMIT $1 FOR UPDATE OF s SKIP LOCKED))
    RETURNING connection_id)`,
      'SELECT FROM ended',
    ),
    disown: statement(
      'disown_sessions',
      `ended AS (
    DELETE FROM live_sessions WHERE connection_id = ANY (ARRAY (SELECT connection_id FROM live_sessions WHERE instance_id IS NOT NULL LIMIT $1))
    RETURNING connection_id)`,
      'SELECT FROM ended',
    ),
  }
}

const renew = {
  name: 'renew_lease',
  text: `WITH before AS (SELECT missed_at FROM instances WHERE instance_id = $1)
  INSERT INTO instances (instance_id, lease_until) VALUES ($1, now() + $2::int * interval '1 ms')
  ON CONFLICT (instance_id) DO UPDATE SET lease_until = excluded.lease_until, missed_at = NULL
  RETURNING (SELECT missed_at IS NOT NULL FROM before)`,
}

// Uses, for each session, the primary key of queued_messages from its since_seq on; OFFSET 0 keeps Postgres from making a join of it, for
// which it may read whole queues.
const waitingOf = (sessions: string) => `SELECT s.connection_id, s.epoch FROM live_sessions s WHERE ${sessions} AND EXISTS (
    SELECT FROM queued_messages m WHERE m.connection_id = s.connection_id AND m.seq > s.since_seq
      AND NOT pg_visible_in_snapshot(m.accepted_by, s.since) AND ${deliverable('s.epoch', '$2::int')}
    OFFSET 0)`
// Uses live_sessions_instance_id.
const waiting = { name: 'waiting', text: waitingOf('s.instance_id = $1') }
// Uses live_sessions_pkey. That they are of this instance is not asked: there is an index for that too, which has all that it has.
const waitingAmong = { name: 'waiting_among', text: waitingOf('s.connection_id = ANY ($1::text[])') }

/** HAS_SESSION, for drizzle. */
export const hasSession = sql`${instances.instanceId} = ANY (ARRAY[${liveSessions.instanceId}])`

/** Whether a session counts, where live_sessions is joined with instances: its own time, or the lease of its instance. */
export const counts = or(gt(liveSessions.expiresAt, sql`now()`), gt(instances.leaseUntil, sql`now()`))

export interface PostgresSessionsOptions {
  pool: Pool
  query: Query
  /** Milliseconds that a wallet has to come back before its session's end owes a push; absent when pushes are off. */
  pushWindowMs?: number
}

export interface PostgresSessions extends SessionDirectory {
  /** Ends what former processes left, on a database that can have no other instance. */
  disown(): Promise<void>
}

/** The session directory on Postgres, beside the queue: taking and counting look at it in the same statement. */
export function createPostgresSessions({ pool, query, pushWindowMs }: PostgresSessionsOptions): PostgresSessions {
  const instanceId = randomUUID()
  const { close, closeMany, closeAll, expired, missed, disown } = ending({ windowMs: pushWindowMs })
  const db = drizzle(pool)

  const isLive = db
    .select({ epoch: liveSessions.epoch })
    .from(liveSessions)
    .leftJoin(instances, hasSession)
    .where(and(eq(liveSessions.connectionId, sql.placeholder('connectionId')), counts))
    .prepare('is_live')

  async function inBatches(statement: Statement, values: unknown[] = []): Promise<void> {
    while ((await query(statement, [...values, END_BATCH])).length === END_BATCH);
  }

  return {
    instanceId,

    async open({ connectionId, sessionId, ttlMs }) {
      const hasSocket = ttlMs === undefined
      const [row] = await query<[string, string | null, string | null]>(open, [
        connectionId,
        sessionId,
        hasSocket ? instanceId : null,
        ttlMs ?? null,
      ])
      const [epoch, formerEpoch, formerInstance] = row!
      return {
        epoch: Number(epoch),
        former:
          formerEpoch === null || formerEpoch === epoch
            ? undefined
            : { epoch: Number(formerEpoch), instanceId: formerInstance ?? undefined },
      }
    },

    async close({ connectionId, epoch, sessionId }) {
      const [row] = await query<[string, string | null, boolean | null]>(close, [connectionId, epoch ?? null, sessionId ?? null])
      return row?.[2] ? { epoch: Number(row[0]), instanceId: row[1] ?? undefined } : undefined
    },

    async closeMany(sessions) {
      await query(closeMany, [sessions.map((session) => session.connectionId), sessions.map((session) => session.epoch)])
    },

    async closeAll() {
      await inBatches(closeAll, [instanceId])
      await attempt(db.delete(instances).where(eq(instances.instanceId, instanceId)))
    },

    async isLive(connectionId) {
      return (await attempt(isLive.execute({ connectionId }))).length > 0
    },

    async renew() {
      const [row] = await query<[boolean | null]>(renew, [instanceId, INSTANCE_LEASE_MS])
      // Others took this instance for dead and have seen to its sessions. They live on, and may have to be seen to again.
      if (row![0]) await attempt(db.update(liveSessions).set({ missed: false }).where(eq(liveSessions.instanceId, instanceId)))
    },

    async waiting(leaseMs, connectionIds) {
      const rows = await (connectionIds
        ? query<[string, string]>(waitingAmong, [connectionIds, leaseMs])
        : query<[string, string]>(waiting, [instanceId, leaseMs]))
      return rows.map(([connectionId, epoch]) => ({ connectionId, epoch: Number(epoch) }))
    },

    async sweep() {
      await inBatches(expired)
      await inBatches(missed)
      await attempt(
        db
          .update(instances)
          .set({ missedAt: sql`now()` })
          .where(and(lte(instances.leaseUntil, sql`now()`), isNull(instances.missedAt))),
      )
      await attempt(
        db.execute(sql`WITH dead AS (DELETE FROM ${instances} WHERE ${instances.leaseUntil} < now() - interval '1 day' RETURNING instance_id)
          DELETE FROM ${liveSessions} WHERE ${liveSessions.instanceId} IN (SELECT instance_id FROM dead)`),
      )
    },

    async disown() {
      await inBatches(disown)
      await attempt(db.delete(instances))
    },
  }
}
