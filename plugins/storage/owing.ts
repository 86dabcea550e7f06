import { createHash } from 'node:crypto'
import type { PushToken } from '../../src/ports.js'

/*
 * How a push comes to be owed, as parts of the statements that make it so: a message is added while nobody is live, or a
 * session ends. Both write the outbox in the transaction of the fact itself, so neither is known without the other.
 */

/** Names a device token in keys and indexes, where it may be too long. */
export function hashOf({ type, project = '', token }: PushToken): string {
  return createHash('sha256').update(`${type}\n${project}\n${token}`).digest('base64url')
}

/** Whether the connection of the row `alias` has a live session. Uses live_sessions_pkey and instances_pkey. */
export const isLive = (alias: string) => `EXISTS (
    SELECT FROM live_sessions s LEFT JOIN instances i ON i.instance_id = s.instance_id
    WHERE s.connection_id = ${alias}.connection_id AND (s.expires_at > now() OR i.lease_until > now()))`

/** The end of the window that the last push opened, or now. */
const WINDOW_OVER = 'greatest(now(), o.window_until)'

/**
 * What a new message owes, from `targets` (connection_id and a token) and `offline` (connection_id, seq of its newest message).
 * The row is locked even where nothing changes, and that is the point: a push that is still to be claimed covers this message,
 * because it is claimed after our commit; for one that is being sent, that is not known, so another is owed.
 */
export const OWED_BY_MESSAGES = `owed AS (
  INSERT INTO push_outbox AS o (token_hash, type, project, token, state, next_at, owed_since, connection_id, seq)
  SELECT DISTINCT ON (token_hash) token_hash, type, project, token, 'owed', now(), now(), connection_id, seq
  FROM targets JOIN offline USING (connection_id)
  ORDER BY token_hash, seq DESC
  ON CONFLICT (token_hash) DO UPDATE SET connection_id = excluded.connection_id, seq = excluded.seq, despite_live = false,
    state = CASE o.state WHEN 'resting' THEN 'owed' ELSE o.state END,
    owed_again = o.state = 'sending',
    owed_since = CASE o.state WHEN 'resting' THEN now() ELSE o.owed_since END,
    next_at = CASE WHEN o.state = 'resting' THEN ${WINDOW_OVER} WHEN o.state = 'owed' AND o.attempts = 0 THEN least(o.next_at, ${WINDOW_OVER}) ELSE o.next_at END
  WHERE o.state <> 'dead'
  RETURNING 1)`

/**
 * What sessions owe that ended, or that do not remove what they are given, from `ended` (connection_id). Whether mail was left behind
 * is looked at when the push is due, after `delay`: a mediator that restarts has its sessions back by then.
 */
export const owedBySessions = (delay: string, despiteLive: boolean) => `owed AS (
  INSERT INTO push_outbox AS o (token_hash, type, project, token, state, next_at, owed_since, connection_id, despite_live)
  SELECT DISTINCT ON (t.token_hash) t.token_hash, t.type, t.project, t.token, 'owed', now() + ${delay}, now(), t.connection_id, ${despiteLive}
  FROM ended e JOIN push_tokens t ON t.connection_id = e.connection_id
  WHERE t.token IS NOT NULL
  ORDER BY t.token_hash, t.connection_id
  ON CONFLICT (token_hash) DO UPDATE SET connection_id = excluded.connection_id, seq = NULL, despite_live = excluded.despite_live,
    state = CASE o.state WHEN 'resting' THEN 'owed' ELSE o.state END,
    owed_again = o.state = 'sending',
    owed_since = CASE o.state WHEN 'resting' THEN now() ELSE o.owed_since END,
    next_at = CASE WHEN o.state = 'resting' OR o.state = 'owed' AND o.attempts = 0 THEN greatest(excluded.next_at, o.window_until) ELSE o.next_at END
  WHERE o.state <> 'dead'
  RETURNING 1)`
