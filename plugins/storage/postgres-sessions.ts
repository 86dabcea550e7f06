import { randomUUID } from 'node:crypto'
import { and, eq, gt, lt, or, sql } from 'drizzle-orm'
import { drizzle } from 'drizzle-orm/node-postgres'
import type { Pool } from 'pg'
import { instances, liveSessions } from '../../drizzle/schema.js'
import type { SessionDirectory } from '../../src/ports.js'
import { deliverable } from './postgres-store.js'
import { storeError, type Query } from './query.js'

/** How long the sessions of a crashed instance still count. The janitor renews it every 5 s. */
const INSTANCE_LEASE_MS = 25_000

const open = {
  name: 'open_session',
  // Uses live_sessions_pkey, and the primary key of queued_messages backwards from the newest message. A statement ends
  // within 1.2 s (statement_timeout), so what is committed after this one was accepted less than 5 s before it.
  // `former` is read by the SELECT, not only by RETURNING: there the row it locks has been replaced by this very statement.
  text: `WITH former AS (SELECT epoch, instance_id FROM live_sessions WHERE connection_id = $1 FOR UPDATE)
  INSERT INTO live_sessions AS s (connection_id, session_id, instance_id, expires_at, since, since_seq)
  SELECT $1, $2, $3::uuid, now() + $4::int * interval '1 ms', pg_current_snapshot(), coalesce((
    SELECT seq FROM queued_messages WHERE connection_id = $1 AND now() - accepted_at > interval '5 seconds' ORDER BY seq DESC LIMIT 1), 0)
  FROM (SELECT count(*) FROM former) locked
  ON CONFLICT (connection_id) DO UPDATE SET session_id = excluded.session_id, instance_id = excluded.instance_id,
    expires_at = excluded.expires_at, since = excluded.since, since_seq = excluded.since_seq, epoch = DEFAULT
  RETURNING s.epoch, (SELECT epoch FROM former), (SELECT instance_id FROM former)`,
}

const close = {
  name: 'close_session',
  // A session that no longer counts is deleted too, but there was nothing to end.
  text: `DELETE FROM live_sessions s WHERE s.connection_id = $1 AND ($2::bigint IS NULL OR s.epoch = $2) AND ($3::text IS NULL OR s.session_id = $3)
  RETURNING s.epoch, s.instance_id, (s.expires_at > now() OR EXISTS (SELECT FROM instances i WHERE i.instance_id = s.instance_id AND i.lease_until > now()))`,
}

const waiting = {
  name: 'waiting',
  // Uses live_sessions_instance_id and, for each session, the primary key of queued_messages from its since_seq on.
  text: `SELECT s.connection_id, s.epoch FROM live_sessions s WHERE s.instance_id = $1 AND EXISTS (
    SELECT FROM queued_messages m WHERE m.connection_id = s.connection_id AND m.seq > s.since_seq
      AND NOT pg_visible_in_snapshot(m.accepted_by, s.since) AND ${deliverable('s.epoch', '$2::int')})`,
}

export interface PostgresSessionsOptions {
  pool: Pool
  query: Query
}

/** The session directory on Postgres, beside the queue: taking and counting look at it in the same statement. */
export function createPostgresSessions({ pool, query }: PostgresSessionsOptions): SessionDirectory {
  const instanceId = randomUUID()
  const db = drizzle(pool)
  const leaseUntil = sql`now() + ${INSTANCE_LEASE_MS} * interval '1 ms'`

  const counts = or(gt(liveSessions.expiresAt, sql`now()`), gt(instances.leaseUntil, sql`now()`))
  const isLive = db
    .select({ epoch: liveSessions.epoch })
    .from(liveSessions)
    .leftJoin(instances, eq(instances.instanceId, liveSessions.instanceId))
    .where(and(eq(liveSessions.connectionId, sql.placeholder('connectionId')), counts))
    .prepare('is_live')

  const renew = db
    .insert(instances)
    .values({ instanceId, leaseUntil })
    .onConflictDoUpdate({ target: instances.instanceId, set: { leaseUntil } })
    .prepare('renew_lease')

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
        former: formerEpoch === null ? undefined : { epoch: Number(formerEpoch), instanceId: formerInstance ?? undefined },
      }
    },

    async close({ connectionId, epoch, sessionId }) {
      const [row] = await query<[string, string | null, boolean | null]>(close, [connectionId, epoch ?? null, sessionId ?? null])
      return row?.[2] ? { epoch: Number(row[0]), instanceId: row[1] ?? undefined } : undefined
    },

    async closeMany(sessions) {
      await attempt(
        db.execute(
          sql`DELETE FROM ${liveSessions} s USING unnest(${sql.param(sessions.map((s) => s.connectionId))}::text[], ${sql.param(
            sessions.map((s) => s.epoch),
          )}::bigint[]) AS gone (connection_id, epoch) WHERE s.connection_id = gone.connection_id AND s.epoch = gone.epoch`,
        ),
      )
    },

    async closeAll() {
      await attempt(
        db.execute(sql`WITH gone AS (DELETE FROM ${liveSessions} WHERE ${liveSessions.instanceId} = ${instanceId})
          DELETE FROM ${instances} WHERE ${instances.instanceId} = ${instanceId}`),
      )
    },

    async isLive(connectionId) {
      return (await attempt(isLive.execute({ connectionId }))).length > 0
    },

    async renew() {
      await attempt(renew.execute())
    },

    async waiting(leaseMs) {
      const rows = await query<[string, string]>(waiting, [instanceId, leaseMs])
      return rows.map(([connectionId, epoch]) => ({ connectionId, epoch: Number(epoch) }))
    },

    async sweep() {
      await attempt(db.delete(liveSessions).where(lt(liveSessions.expiresAt, sql`now()`)))
      await attempt(
        db.execute(sql`WITH dead AS (DELETE FROM ${instances} WHERE ${instances.leaseUntil} < now() - interval '1 day' RETURNING instance_id)
          DELETE FROM ${liveSessions} WHERE ${liveSessions.instanceId} IN (SELECT instance_id FROM dead)`),
      )
    },
  }
}

/** Drizzle wraps what the driver threw. */
async function attempt<T>(query: PromiseLike<T>): Promise<T> {
  try {
    return await query
  } catch (error) {
    throw storeError((error as Error).cause ?? error)
  }
}
