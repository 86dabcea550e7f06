import { setTimeout as sleep } from 'node:timers/promises'
import type { Query, Statement } from './query.js'

/*
 * Counting a deep queue without reading it. A tally says how many messages of a connection there are up to a seq; what was removed of
 * them since is added up beside it by a trigger, and only what came later is counted. docs/decisions/0004
 *
 *   none -> begun      a count has read many rows. From its commit on, removals are written down for it.
 *   begun -> counted   when all that was writing to the queues at that time has ended. It replaces the one before.
 *   begun -> none      when they take too long, or it fails.
 *   counted -> none    an hour after its messages were last read one by one.
 *
 * It is exact in every snapshot. A message with a seq up to the tally's was given it before the tally was begun, so that its statement was
 * running then, and was waited for, or had ended: there will be no more of them. A removal was waited for too, or its trigger sees the
 * tally. And what a removal writes down becomes visible together with it.
 */

/** Longer than any statement of ours takes. */
const PATIENCE_MS = 3_000
const POLL_MS = 20
const LIFE = `interval '1 hour'`
/** So many rows read in vain cost as much as making a tally. */
const WORTH_ROWS = 2_000
/** A share of that is too little to be remembered. */
const WORTH_NOTING = 1 / 20
const MAX_NOTED = 10_000

const firstSeq = (connectionId: string) =>
  `(SELECT m.seq FROM queued_messages m WHERE m.connection_id = ${connectionId} ORDER BY m.seq LIMIT 1)`

const removedOf = (tallyId: string) => `
      SELECT coalesce(sum(r.messages), 0)::bigint AS messages, coalesce(sum(r.bytes), 0)::bigint AS bytes, count(*) AS rows_read
      FROM tallied_removals r WHERE r.tally_id = ${tallyId}`

/**
 * The newest tally of a connection, less what was removed of it, and how many rows were read for that. None when nothing is left of it: the first
 * message comes after it, or there is none. Uses the primary key and tallied_removals_tally_id.
 */
export const tallyOf = (connectionId: string, first = firstSeq(connectionId)) => `
    SELECT t.up_to_seq, t.counted_at, t.messages - gone.messages AS messages, t.bytes - gone.bytes AS bytes, gone.rows_read
    FROM queue_tallies t CROSS JOIN LATERAL (${removedOf('t.id')}) gone
    WHERE t.connection_id = ${connectionId} AND t.messages IS NOT NULL AND t.counted_at > now() - ${LIFE} AND t.up_to_seq >= ${first}
    ORDER BY t.id DESC LIMIT 1`

export const tallyStatements = {
  // Not where the trigger is missing: a table that was made anew, to be partitioned, has lost it.
  begin: {
    name: 'tally_begin',
    text: `INSERT INTO queue_tallies (connection_id, up_to_seq) SELECT $1, last_value FROM queued_messages_seq_seq
  WHERE EXISTS (SELECT FROM pg_trigger WHERE tgrelid = 'queued_messages'::regclass AND tgname = 'tally_removals' AND tgenabled = 'O')
  RETURNING id`,
  },

  // The transactions that are writing to queues; with $1 those among them. A statement takes its lock before its snapshot.
  writing: {
    name: 'tally_writing',
    text: `SELECT DISTINCT virtualtransaction FROM pg_locks
  WHERE relation = 'queued_messages'::regclass AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND mode = 'RowExclusiveLock' AND ($1::text[] IS NULL OR virtualtransaction = ANY ($1))`,
  },

  finish: {
    name: 'tally_finish',
    text: `WITH mine AS MATERIALIZED (SELECT up_to_seq FROM queue_tallies WHERE connection_id = $1 AND id = $2),
  former AS MATERIALIZED (SELECT f.* FROM (${tallyOf('$1')}) f WHERE f.up_to_seq <= (SELECT up_to_seq FROM mine)),
  later AS (
    SELECT count(*) AS messages, coalesce(sum(m.payload_bytes), 0)::bigint AS bytes FROM queued_messages m
    WHERE m.connection_id = $1 AND m.seq > coalesce((SELECT up_to_seq FROM former), 0) AND m.seq <= (SELECT up_to_seq FROM mine)),
  gone AS (${removedOf('$2')}),
  counted AS (
    UPDATE queue_tallies t SET counted_at = coalesce((SELECT counted_at FROM former), now()),
      messages = coalesce((SELECT messages FROM former), 0) + later.messages + gone.messages,
      bytes = coalesce((SELECT bytes FROM former), 0) + later.bytes + gone.bytes
    FROM later, gone WHERE t.connection_id = $1 AND t.id = $2 RETURNING 1),
  replaced AS (
    DELETE FROM queue_tallies WHERE connection_id = $1 AND id < $2 AND messages IS NOT NULL AND EXISTS (SELECT FROM counted) RETURNING id)
  DELETE FROM tallied_removals WHERE tally_id = ANY (ARRAY (SELECT id FROM replaced))`,
  },

  drop: { name: 'tally_drop', text: `DELETE FROM queue_tallies WHERE connection_id = $1 AND id = $2` },

  // What is over, and what was removed of tallies that are no more: ids grow, and a removal may have seen a tally that was just replaced.
  sweep: {
    name: 'tally_sweep',
    text: `WITH old AS (DELETE FROM queue_tallies WHERE coalesce(counted_at, begun_at) <= now() - ${LIFE} RETURNING id)
  DELETE FROM tallied_removals WHERE tally_id < coalesce((SELECT min(id) FROM queue_tallies), 9223372036854775807)
    OR tally_id = ANY (ARRAY (SELECT id FROM old))`,
  },
} satisfies Record<string, Statement>

/** @param worthRows a queue has a tally made when counts of it have read so many rows */
export function createTallies({ query, worthRows = WORTH_ROWS }: { query: Query; worthRows?: number }) {
  const noted = new Map<string, number>()
  let isMaking = false

  return {
    /** A count of this queue has read so many rows that a new tally would have spared. */
    note(connectionId: string, rows: number): void {
      if (rows <= worthRows * WORTH_NOTING) return
      const sum = rows + (noted.get(connectionId) ?? 0)
      if (noted.size >= MAX_NOTED) noted.clear()
      noted.set(connectionId, sum)
      if (sum < worthRows || isMaking) return
      noted.delete(connectionId)
      isMaking = true
      // It fails with the database, which calls are told about; the count stays what it was.
      void make(connectionId)
        .catch(() => {})
        .finally(() => (isMaking = false))
    },

    async sweep(): Promise<void> {
      await query(tallyStatements.sweep, [])
    },
  }

  async function make(connectionId: string): Promise<void> {
    const [begun] = await query<[id: string]>(tallyStatements.begin, [connectionId])
    if (!begun) return
    const [id] = begun
    let isCounted = false
    try {
      if (await writersEnd()) {
        await query(tallyStatements.finish, [connectionId, id])
        isCounted = true
      }
    } finally {
      if (!isCounted) await query(tallyStatements.drop, [connectionId, id])
    }
  }

  /** @returns whether all that is writing now has ended */
  async function writersEnd(): Promise<boolean> {
    const since = performance.now()
    for (let writers: string[] | null = null; ; await sleep(POLL_MS)) {
      const rows: [string][] = await query<[string]>(tallyStatements.writing, [writers])
      if (rows.length === 0) return true
      if (performance.now() - since > PATIENCE_MS) return false
      writers = rows.map(([transaction]) => transaction)
    }
  }
}
