import { randomInt } from 'node:crypto'
import { and, eq, sql } from 'drizzle-orm'
import { drizzle } from 'drizzle-orm/node-postgres'
import type { Pool } from 'pg'
import { pushOutbox, pushTokens } from '../../drizzle/schema.js'
import type { DuePush, PushOutbox } from '../../src/ports.js'
import { hashOf, isLive, owedBySessions } from './owing.js'
import { attempt, type Query, type Statement } from './query.js'

/*
 * The outbox: one row for a device token.
 *
 *   (none)    nothing is owed and no window runs
 *   owed      a message was added while nobody was live, or a session ended; due at next_at. After a failure it is owed later
 *   sending   an instance claimed it; at next_at the claim runs out and anybody may claim it
 *   resting   it was sent or is not needed; until next_at (the end of the window) the row remembers when
 *   dead      the push service will not take the token any more; remembered, so that whoever gives it again is told
 *
 * What is owed while a push is being sent makes the row owed again when that is settled (owed_again).
 *
 * Whether a push is still needed is looked at after the claim has been committed, by a statement of its own: only what began after
 * that commit sees every message that the claimed row stands for.
 */

const DEAD_KEPT = `interval '30 days'`
const SWEEP_BATCH = 1_000

/** Not needed, or needed again because of what happened while it was claimed. */
const OVER = `state = CASE WHEN owed_again THEN 'owed' ELSE 'resting' END, owed_again = false, claim = NULL, attempts = 0,
  owed_since = now(), next_at = greatest(now(), window_until)`

export const outboxStatements = {
  // Uses push_outbox_due.
  claim: {
    name: 'claim_pushes',
    text: `WITH due AS (
    SELECT token_hash FROM push_outbox WHERE state IN ('owed', 'sending') AND next_at <= now() ORDER BY next_at LIMIT $1 FOR UPDATE SKIP LOCKED)
  UPDATE push_outbox o SET state = 'sending', claim = $2, next_at = now() + $3::int * interval '1 ms', owed_again = false
  FROM due WHERE o.token_hash = due.token_hash
  RETURNING o.token_hash, o.type, o.project, o.token, o.connection_id, o.seq, o.attempts,
    (extract(epoch FROM now() - o.owed_since) * 1000)::float8, o.despite_live`,
  },

  // A push is needed while its message is there (or, after a session, mail that has had no such push) and nobody is live: the end of
  // that session owes one anew. One that was owed within the window of another is needed only if the device has come since.
  look: {
    name: 'look_at_pushes',
    text: `SELECT o.token_hash, CASE
    WHEN NOT o.despite_live AND ${isLive('o')} THEN false
    WHEN o.seq IS NULL THEN EXISTS (
      SELECT FROM push_tokens t JOIN queued_messages m ON m.connection_id = t.connection_id AND m.seq > t.reminded_seq
      WHERE t.connection_id = o.connection_id AND (NOT o.despite_live OR m.deliveries > 1))
    WHEN o.owed_since < o.window_until AND EXISTS (
      SELECT FROM queued_messages m WHERE m.connection_id = o.sent_connection_id AND m.seq = o.sent_seq) THEN false
    ELSE EXISTS (SELECT FROM queued_messages m WHERE m.connection_id = o.connection_id AND m.seq = o.seq) END
  FROM push_outbox o WHERE o.token_hash = ANY ($1::text[]) AND o.claim = $2`,
  },

  sent: {
    name: 'push_sent',
    text: `WITH reminded AS (
    UPDATE push_tokens t SET reminded_seq = coalesce((
      SELECT m.seq FROM queued_messages m WHERE m.connection_id = t.connection_id ORDER BY m.seq DESC LIMIT 1), t.reminded_seq)
    WHERE $4::bigint IS NULL AND t.connection_id = $3)
  UPDATE push_outbox SET window_until = now() + $5::int * interval '1 ms', sent_connection_id = $3, sent_seq = $4,
    state = CASE WHEN owed_again THEN 'owed' ELSE 'resting' END, owed_again = false, claim = NULL, attempts = 0,
    owed_since = now(), next_at = now() + $5::int * interval '1 ms'
  WHERE token_hash = $1 AND claim = $2`,
  },

  over: { name: 'push_over', text: `UPDATE push_outbox SET ${OVER} WHERE token_hash = ANY ($1::text[]) AND claim = $2` },

  again: {
    name: 'push_again',
    text: `UPDATE push_outbox SET state = 'owed', owed_again = false, claim = NULL, attempts = least(attempts + $4::int, 1000),
    next_at = now() + $3::int * interval '1 ms' WHERE token_hash = $1 AND claim = $2`,
  },

  // Only this token: a connection that has another one by now keeps it. Uses push_tokens_token_hash.
  dead: {
    name: 'push_dead',
    text: `WITH dead AS (
    UPDATE push_outbox SET state = 'dead', reason = $3, token = '', claim = NULL, owed_again = false, next_at = now() + ${DEAD_KEPT}
    WHERE token_hash = $1 AND claim = $2 RETURNING token_hash)
  UPDATE push_tokens t SET token = NULL FROM dead WHERE t.token_hash = dead.token_hash RETURNING t.connection_id`,
  },

  // Nobody adds to a connection between its session's last claim and this.
  remind: {
    name: 'push_remind',
    text: `WITH ended AS (SELECT $1::text AS connection_id), ${owedBySessions(`interval '0'`, true)} SELECT FROM owed`,
  },

  // Uses push_outbox_over.
  sweep: {
    name: 'sweep_pushes',
    text: `DELETE FROM push_outbox WHERE token_hash = ANY (ARRAY (
    SELECT token_hash FROM push_outbox WHERE state IN ('resting', 'dead') AND next_at <= now() ORDER BY next_at LIMIT ${SWEEP_BATCH} FOR UPDATE SKIP LOCKED))`,
  },
} satisfies Record<string, Statement>

/** Statements of the outbox at once: however many pushes are under way, adding must not wait in the pool behind them. */
const MAX_STATEMENTS = 2

export interface PostgresOutboxOptions {
  pool: Pool
  query: Query
  /** Milliseconds between two pushes to one token, at least. */
  windowMs: number
  /** Milliseconds until a claim runs out. Longer than a sending takes, its time-out included. */
  claimMs: number
}

/** The push outbox on Postgres, beside the queue. Keeping it is for adding and ending sessions, see owing.ts. */
export function createPostgresOutbox({ pool, query: queryNow, windowMs, claimMs }: PostgresOutboxOptions): PushOutbox {
  const db = drizzle(pool)
  const query = inTurn(queryNow, MAX_STATEMENTS)

  const find = db
    .select({
      type: pushTokens.type,
      project: pushTokens.project,
      ending: pushTokens.ending,
      since: pushTokens.updatedAt,
      token: pushTokens.token,
      reason: pushOutbox.reason,
    })
    .from(pushTokens)
    .leftJoin(pushOutbox, and(eq(pushOutbox.tokenHash, pushTokens.tokenHash), eq(pushOutbox.state, 'dead')))
    .where(eq(pushTokens.connectionId, sql.placeholder('connectionId')))
    .prepare('find_push_token')

  return {
    async setToken(connectionId, token) {
      const tokenHash = hashOf(token)
      const values = {
        ...token,
        tokenHash,
        project: token.project ?? '',
        ending: endingOf(token.token),
        registered: true,
        updatedAt: sql`now()`,
      }
      await attempt(
        db.transaction(async (tx) => {
          await tx.delete(pushOutbox).where(and(eq(pushOutbox.tokenHash, tokenHash), eq(pushOutbox.state, 'dead')))
          await tx
            .insert(pushTokens)
            .values({ ...values, connectionId })
            .onConflictDoUpdate({ target: pushTokens.connectionId, set: values })
        }),
      )
    },

    async getToken(connectionId) {
      const [row] = await attempt(find.execute({ connectionId }))
      if (!row) return undefined
      return {
        type: row.type,
        ...(row.project ? { project: row.project } : {}),
        ending: row.ending,
        since: row.since.toISOString(),
        ...(row.token === null ? { dead: row.reason ?? 'refused by the push service' } : {}),
      }
    },

    async removeToken(connectionId) {
      return attempt(
        db.transaction(async (tx) => {
          const [gone] = await tx
            .delete(pushTokens)
            .where(eq(pushTokens.connectionId, connectionId))
            .returning({ tokenHash: pushTokens.tokenHash })
          if (!gone) return false
          const { tokenHash } = gone
          const owed = and(eq(pushOutbox.tokenHash, tokenHash), eq(pushOutbox.state, 'owed'), eq(pushOutbox.connectionId, connectionId))
          await tx.delete(pushOutbox).where(owed)
          return true
        }),
      )
    },

    async remind(connectionId) {
      await query(outboxStatements.remind, [connectionId])
    },

    async claim(limit) {
      const claim = randomInt(2 ** 47)
      const claimed = await query<ClaimedRow>(outboxStatements.claim, [limit, claim, claimMs])
      if (claimed.length === 0) return { due: [], cancelled: 0 }
      const looked = await query<[string, boolean]>(outboxStatements.look, [claimed.map(([key]) => key), claim])
      const unneeded = new Set(looked.filter(([, isNeeded]) => !isNeeded).map(([key]) => key))
      if (unneeded.size > 0) await query(outboxStatements.over, [[...unneeded], claim])
      const due = claimed.filter(([key]) => !unneeded.has(key)).map((row) => toPush(row, claim))
      return { due, cancelled: unneeded.size }
    },

    async settle({ key, claim, connectionId, seq }, settlement) {
      switch (settlement.as) {
        case 'sent':
          await query(outboxStatements.sent, [key, claim, connectionId, seq ?? null, windowMs])
          return []
        case 'over':
          await query(outboxStatements.over, [[key], claim])
          return []
        case 'again':
          await query(outboxStatements.again, [key, claim, Math.round(settlement.afterMs), settlement.failed ? 1 : 0])
          return []
        case 'dead':
          return (await query<[string]>(outboxStatements.dead, [key, claim, settlement.reason])).map(([id]) => id)
      }
    },

    async sweep() {
      await query(outboxStatements.sweep, [])
    },
  }
}

function inTurn(query: Query, width: number): Query {
  let running = 0
  const waiting: (() => void)[] = []
  return async (statement, values) => {
    if (running < width) running++
    else await new Promise<void>((resolve) => waiting.push(resolve))
    try {
      return await query(statement, values)
    } finally {
      const next = waiting.shift()
      if (next) next()
      else running--
    }
  }
}

type ClaimedRow = [
  key: string,
  type: string,
  project: string,
  token: string,
  connectionId: string,
  seq: string | null,
  attempts: number,
  ageMs: number,
]

function toPush([key, type, project, token, connectionId, seq, attempts, ageMs]: ClaimedRow, claim: number): DuePush {
  return { key, claim, token: { type, ...(project ? { project } : {}), token }, connectionId, seq: seq ?? undefined, attempts, ageMs }
}

function endingOf(token: string): string {
  return token.slice(-6)
}
