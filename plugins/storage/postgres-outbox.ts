import { randomInt } from 'node:crypto'
import { and, eq, sql } from 'drizzle-orm'
import { drizzle } from 'drizzle-orm/node-postgres'
import type { Pool } from 'pg'
import { pushOutbox, pushTokens } from '../../drizzle/schema.js'
import type { DuePush, PushOutbox } from '../../src/ports.js'
import { ending } from '../../src/push.js'
import { hashOf, isLive, OWED_BY_MESSAGES, owedBySessions } from './owing.js'
import { attempt, type Query, type Statement } from './query.js'

/*
 * The outbox: one row for a device token, and below it the reasons for which it is owed a push.
 *
 *   (none)    nothing is owed and no window runs
 *   owed      a message was added while nobody was live, or a session ended; due at next_at. After a failure it is owed later
 *   sending   an instance claimed it, and the reasons that were due; at next_at the claim runs out and anybody may claim it
 *   resting   it was sent or is not needed; until next_at (the end of the window) the row remembers when
 *   dead      the push service will not take the token any more; remembered, so that whoever gives it again is told
 *
 * A sending answers to the reasons that it claimed. What came up since makes the row owed again when it is settled: again_at says so for
 * what came after the claim, the reasons themselves for what the claim's snapshot did not show.
 *
 * Whether a push is still needed is looked at after the claim has been committed, by a statement of its own: only what began after
 * that commit sees every message that the claimed reasons stand for.
 */

const DEAD_KEPT = `interval '30 days'`
const SWEEP_BATCH = 1_000

/** Came up since the claim. */
const LEFT = `EXISTS (SELECT FROM push_reasons r WHERE r.token_hash = o.token_hash AND r.claim IS DISTINCT FROM $2)`
/** The state after a sending that answered to the reasons of claim $2, and when it is due. */
const settled = (windowUntil: string) => `
    state = CASE WHEN o.again_at IS NOT NULL OR ${LEFT} THEN 'owed' ELSE 'resting' END,
    next_at = greatest(now(), ${windowUntil}, o.again_at, (SELECT min(r.not_before) FROM push_reasons r WHERE r.token_hash = o.token_hash AND r.claim IS DISTINCT FROM $2)),
    again_at = NULL, claim = NULL, attempts = 0`
const ANSWERED = `answered AS (
    DELETE FROM push_reasons r USING settled WHERE r.token_hash = settled.token_hash AND r.claim = $2 RETURNING r.connection_id, r.reminds, r.to_seq)`

export const outboxStatements = {
  // Uses push_outbox_due, and the primary keys of push_reasons and queued_messages.
  claim: {
    name: 'claim_pushes',
    text: `WITH due AS (
    SELECT token_hash FROM push_outbox WHERE state IN ('owed', 'sending') AND next_at <= now() ORDER BY next_at LIMIT $1 FOR UPDATE SKIP LOCKED),
  claimed AS (
    UPDATE push_outbox o SET state = 'sending', claim = $2, next_at = now() + $3::int * interval '1 ms', again_at = NULL
    FROM due WHERE o.token_hash = due.token_hash
    RETURNING o.token_hash, o.type, o.project, o.token, o.attempts, (extract(epoch FROM now() - o.owed_since) * 1000)::float8 AS age_ms),
  reasons AS (
    UPDATE push_reasons r SET claim = $2, to_seq = (
      SELECT m.seq FROM queued_messages m WHERE m.connection_id = r.connection_id ORDER BY m.seq DESC LIMIT 1)
    FROM claimed c WHERE r.token_hash = c.token_hash AND r.not_before <= now())
  SELECT token_hash, type, project, token, attempts, age_ms FROM claimed`,
  },

  // A reason holds while its messages are there and nobody is live: the end of that session gives one anew. A message that came within the
  // window of another push needs one only if the mediatee has come since: the end of a session is that, and so is a message that is gone.
  look: {
    name: 'look_at_pushes',
    text: `SELECT o.token_hash, reason.connection_id, reason.to_seq
  FROM push_outbox o CROSS JOIN LATERAL (
    SELECT o.owed_since < coalesce(o.window_until, '-infinity') AND EXISTS (
      SELECT FROM queued_messages m WHERE m.connection_id = o.sent_connection_id AND m.seq = o.sent_seq OFFSET 0) AS is_covered) w CROSS JOIN LATERAL (
    SELECT r.connection_id, r.to_seq FROM push_reasons r CROSS JOIN LATERAL (SELECT ${isLive('r')} AS is_live) l
    WHERE r.token_hash = o.token_hash AND r.claim = $2 AND (r.despite_live OR NOT l.is_live) AND EXISTS (
      SELECT FROM queued_messages m WHERE m.connection_id = r.connection_id AND m.seq >= r.from_seq AND (NOT l.is_live OR m.deliveries > 1) OFFSET 0)
      AND (r.reminds OR NOT w.is_covered)
    ORDER BY r.to_seq DESC NULLS LAST LIMIT 1) reason
  WHERE o.token_hash = ANY ($1::text[]) AND o.claim = $2`,
  },

  sent: {
    name: 'push_sent',
    text: `WITH settled AS (
    UPDATE push_outbox o SET window_until = now() + $5::int * interval '1 ms', sent_connection_id = $3, sent_seq = $4, ${settled(`now() + $5::int * interval '1 ms'`)}
    WHERE o.token_hash = $1 AND o.claim = $2 RETURNING o.token_hash),
  ${ANSWERED},
  reminded AS (
    UPDATE push_tokens t SET reminded_seq = greatest(t.reminded_seq, a.to_seq) FROM answered a WHERE a.reminds AND t.connection_id = a.connection_id)
  SELECT FROM answered`,
  },

  over: {
    name: 'push_over',
    text: `WITH settled AS (
    UPDATE push_outbox o SET ${settled('o.window_until')} WHERE o.token_hash = ANY ($1::text[]) AND o.claim = $2 RETURNING o.token_hash),
  ${ANSWERED}
  SELECT FROM answered`,
  },

  again: {
    name: 'push_again',
    text: `UPDATE push_outbox SET state = 'owed', again_at = NULL, claim = NULL, attempts = least(attempts + $4::int, 1000),
    next_at = now() + $3::int * interval '1 ms' WHERE token_hash = $1 AND claim = $2`,
  },

  // Another token of the same connections stands in for one that is dead.
  rehome: {
    name: 'push_rehome',
    text: `WITH stranded AS MATERIALIZED (
    SELECT r.connection_id, r.from_seq FROM push_reasons r JOIN push_outbox o ON o.token_hash = r.token_hash
    WHERE r.token_hash = $1 AND o.claim = $2),
  targets AS (
    SELECT t.connection_id, t.token_hash, t.type, t.project, t.token FROM push_tokens t
    WHERE t.connection_id IN (SELECT connection_id FROM stranded) AND t.token IS NOT NULL AND t.token_hash <> $1),
  offline AS (SELECT * FROM stranded),
  ${OWED_BY_MESSAGES}
  SELECT FROM reasons`,
  },

  // Only this token: a connection that has another one by now keeps it. Uses push_tokens_token_hash.
  dead: {
    name: 'push_dead',
    text: `WITH dead AS (
    UPDATE push_outbox SET state = 'dead', reason = $3, token = '', claim = NULL, again_at = NULL, next_at = now() + ${DEAD_KEPT}
    WHERE token_hash = $1 AND claim = $2 RETURNING token_hash),
  reasons AS (DELETE FROM push_reasons r USING dead WHERE r.token_hash = dead.token_hash RETURNING 1)
  UPDATE push_tokens t SET token = NULL FROM dead WHERE t.token_hash = dead.token_hash AND (SELECT count(*) FROM reasons) >= 0 RETURNING t.connection_id`,
  },

  remind: {
    name: 'push_remind',
    text: `WITH ended AS (SELECT $1::text AS connection_id), ${owedBySessions(0, true)} SELECT FROM reasons`,
  },

  // The row stays for reminded_seq: an app that registers anew at each start would be woken for the same message for ever.
  removeToken: {
    name: 'remove_push_token',
    text: `WITH locked AS (
    SELECT o.token_hash FROM push_tokens t JOIN push_outbox o ON o.token_hash = t.token_hash WHERE t.connection_id = $1 FOR UPDATE OF o),
  reasons AS (DELETE FROM push_reasons r WHERE r.connection_id = $1 AND r.token_hash IN (SELECT token_hash FROM locked) RETURNING 1)
  UPDATE push_tokens SET token = NULL, ending = '', registered = false
  WHERE connection_id = $1 AND ending <> '' AND (SELECT count(*) FROM reasons) >= 0 RETURNING 1`,
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

/** The push outbox on Postgres, beside the queue. What is owed is written by adding and by the end of sessions, see owing.ts. */
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
        ending: ending(token.token),
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
      if (!row?.ending) return undefined
      return {
        type: row.type,
        ...(row.project ? { project: row.project } : {}),
        ending: row.ending,
        since: row.since.toISOString(),
        ...(row.token === null ? { dead: row.reason ?? 'refused by the push service' } : {}),
      }
    },

    async removeToken(connectionId) {
      return (await query(outboxStatements.removeToken, [connectionId])).length > 0
    },

    async remind(connectionId) {
      await query(outboxStatements.remind, [connectionId])
    },

    async claim(limit) {
      const claim = randomInt(2 ** 47)
      const claimed = await query<ClaimedRow>(outboxStatements.claim, [limit, claim, claimMs])
      if (claimed.length === 0) return { due: [], cancelled: 0 }
      const looked = await query<LookedRow>(outboxStatements.look, [claimed.map(([key]) => key), claim])
      const needed = new Map(looked.map(([key, ...newest]) => [key, newest]))
      const unneeded = claimed.filter(([key]) => !needed.has(key)).map(([key]) => key)
      if (unneeded.length > 0) await query(outboxStatements.over, [unneeded, claim])
      const due = claimed.flatMap((row) => {
        const newest = needed.get(row[0])
        return newest ? [toPush(row, newest, claim)] : []
      })
      return { due, cancelled: unneeded.length }
    },

    async settle({ key, claim, connectionId, seq }, settlement) {
      switch (settlement.as) {
        case 'sent':
          await query(outboxStatements.sent, [key, claim, connectionId, seq, windowMs])
          return []
        case 'over':
          await query(outboxStatements.over, [[key], claim])
          return []
        case 'again':
          await query(outboxStatements.again, [key, claim, Math.round(settlement.afterMs), settlement.failed ? 1 : 0])
          return []
        case 'dead':
          await query(outboxStatements.rehome, [key, claim])
          return (await query<[string]>(outboxStatements.dead, [key, claim, settlement.reason])).map(([id]) => id)
      }
    },

    async sweep() {
      await query(outboxStatements.sweep, [])
    },
  }
}

/** At most `width` statements at a time; the others wait for their turn. */
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

type ClaimedRow = [key: string, type: string, project: string, token: string, attempts: number, ageMs: number]
type LookedRow = [key: string, connectionId: string, seq: string | null]

function toPush(row: ClaimedRow, [connectionId, seq]: [string, string | null], claim: number): DuePush {
  const [key, type, project, token, attempts, ageMs] = row
  return { key, claim, token: { type, ...(project ? { project } : {}), token }, connectionId, seq, attempts, ageMs }
}
