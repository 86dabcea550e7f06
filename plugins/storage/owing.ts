import { createHash } from 'node:crypto'
import type { PushToken } from '../../src/ports.js'
import { HAS_SESSION } from './fragments.js'

/*
 * How a push comes to be owed, as parts of the statements that make it so: a message is added while nobody is live, or a
 * session ends. Both write the outbox in the transaction of the fact itself, so neither is known without the other.
 *
 * Locks are taken in one order by every statement: rows of push_outbox by token_hash, their reasons, then push_tokens. A CTE that
 * writes and is not read to its end by the main query runs last, so each of these is.
 */

/** Names a device token in keys and indexes, where it may be too long. */
export function hashOf({ type, project = '', token }: PushToken): string {
  return createHash('sha256').update(`${type}\n${project}\n${token}`).digest('base64url')
}

/**
 * How long is waited after the end of a session: a mediator that restarts has its sessions back by then, and an add that still
 * saw the session is committed (statements end within 1.2 s).
 */
export const afterSessionMs = (windowMs: number): number => Math.max(windowMs, 1_500)

/** Whether the connection of the row `alias` has a live session. Uses live_sessions_pkey and instances_pkey; OFFSET 0: docs/decisions/0024. */
export const isLive = (alias: string) => `EXISTS (
    SELECT FROM live_sessions s LEFT JOIN instances i ON ${HAS_SESSION}
    WHERE s.connection_id = ${alias}.connection_id AND (s.expires_at > now() OR i.lease_until > now()) OFFSET 0)`

/**
 * Writes what `fresh` (token_hash, type, project, token, connection_id, from_seq) owes from `notBefore` on. The row of a token is locked even
 * where nothing changes, and that is the point: a push that is still to be claimed covers this message, because it is claimed after our
 * commit; of one that is being sent that is not known, so the reason stays when it is settled (its claim is null).
 */
const owe = ({ notBefore, reminds, despiteLive }: { notBefore: string; reminds: boolean; despiteLive: boolean }) => `owed AS (
  INSERT INTO push_outbox AS o (token_hash, type, project, token, state, next_at, owed_since)
  SELECT DISTINCT ON (token_hash) token_hash, type, project, token, 'owed', ${notBefore}, now() FROM fresh ORDER BY token_hash
  ON CONFLICT (token_hash) DO UPDATE SET owed_since = now(),
    state = CASE o.state WHEN 'resting' THEN 'owed' ELSE o.state END,
    again_at = CASE o.state WHEN 'sending' THEN greatest(o.again_at, excluded.next_at) END,
    next_at = CASE WHEN o.state = 'resting' THEN greatest(excluded.next_at, o.window_until)
      WHEN o.state = 'owed' AND o.attempts = 0 THEN least(o.next_at, greatest(excluded.next_at, o.window_until)) ELSE o.next_at END
  WHERE o.state <> 'dead'
  RETURNING token_hash),
reasons AS (
  INSERT INTO push_reasons AS r (token_hash, connection_id, from_seq, reminds, despite_live, not_before)
  SELECT token_hash, f.connection_id, min(f.from_seq), ${reminds}, ${despiteLive}, ${notBefore}
  FROM owed JOIN fresh f USING (token_hash) GROUP BY token_hash, f.connection_id
  ON CONFLICT (token_hash, connection_id) DO UPDATE SET from_seq = least(r.from_seq, excluded.from_seq), claim = NULL,
    reminds = r.reminds OR excluded.reminds, despite_live = r.despite_live OR excluded.despite_live,
    not_before = greatest(r.not_before, excluded.not_before)
  RETURNING 1)`

/** From `targets` (connection_id and a token) and `offline` (connection_id, from_seq: the first message that was added). */
export const OWED_BY_MESSAGES = `fresh AS (SELECT * FROM targets JOIN offline USING (connection_id)),
${owe({ notBefore: 'now()', reminds: false, despiteLive: false })}`

/**
 * From `ended` (connection_id): sessions that are over, or one that does not remove what it is given. Whether messages were left behind is
 * looked at when the push is due.
 */
export const owedBySessions = (delayMs: number, despiteLive: boolean) => `fresh AS (
  SELECT t.token_hash, t.type, t.project, t.token, t.connection_id, t.reminded_seq + 1 AS from_seq
  FROM ended e JOIN push_tokens t ON t.connection_id = e.connection_id WHERE t.token IS NOT NULL),
${owe({ notBefore: `now() + interval '${delayMs} ms'`, reminds: true, despiteLive })}`
