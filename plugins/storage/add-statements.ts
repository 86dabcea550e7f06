import { RECEIVED_MS } from './fragments.js'
import { isLive, OWED_BY_MESSAGES } from './owing.js'
import type { Statement } from './query.js'

/*
 * The text of an insert is put together from what its batch asks for. Most messages ask for nothing, and what is asked of no row still costs
 * a lone one a seventh of its time in Postgres. docs/decisions/0008
 */

/** What at least one message of a batch asks for, besides being stored. */
export interface Asked {
  /** Has the mediator's own time. */
  times: boolean
  keys: boolean
  /** May be claimed for a session of this process. */
  claims: boolean
  /** Is stored only if not too much is before it. */
  bounds: boolean
  /** Owes a push when nobody is live. */
  pushes: boolean
  /** Is for more than one recipient DID, or for none. */
  several: boolean
  /** They are so many that one answer for all costs less than a row for each. Not with keys, claims, bounds or pushes, which are answered one by one. */
  many: boolean
}

export type Parameter =
  | ('tag' | 'instance_id' | 'lease_ms' | 'at_most_messages')
  | ('connection_id' | 'dids' | 'bytes' | 'received_at' | 'idempotency_key' | 'epoch' | 'after_seq' | 'at_most_bytes' | 'payload')
  | ('token_hash' | 'type' | 'project' | 'token')

export interface AddStatement extends Statement {
  /** What it is given, in this order. */
  parameters: readonly Parameter[]
}

/** How many seqs there are from one that the sequence gives to the next (drizzle/migrations/0006_seqs_in_a_row.sql). */
export const SEQS_IN_A_ROW = 256

const SCALARS = new Set<Parameter>(['tag', 'instance_id', 'lease_ms', 'at_most_messages'])
const TYPES: Partial<Record<Parameter, string>> = { bytes: 'int', epoch: 'bigint', after_seq: 'bigint', at_most_bytes: 'bigint' }

const parametersOf = ({ times, keys, claims, bounds, pushes }: Asked): Parameter[] => [
  'tag',
  'instance_id',
  ...(claims ? (['lease_ms'] as const) : []),
  ...(bounds ? (['at_most_messages'] as const) : []),
  ...(['connection_id', 'dids', 'bytes'] as const),
  ...(times ? (['received_at'] as const) : []),
  ...(keys ? (['idempotency_key'] as const) : []),
  ...(claims ? (['epoch', 'after_seq'] as const) : []),
  ...(bounds ? (['at_most_bytes'] as const) : []),
  ...(pushes ? (['token_hash', 'type', 'project', 'token'] as const) : []),
  'payload', // the last: pg copies what it has into half as much again whenever another one does not fit
]

/**
 * Whether the session with this epoch may be given the message at once: it is the current one, and nothing that it was not given came before.
 * What it was given last is named by after_seq, so that there is mostly nothing to be read. Uses live_sessions_pkey and the primary key;
 * OFFSET 0 keeps Postgres from making a join of it, for which it may read the whole queue.
 *
 * What u asks is asked within each of these subqueries, where Postgres looks at it first; as a condition of the join it would look up all
 * rows, also those of which nothing is asked.
 */
const CLAIMED = `LEFT JOIN LATERAL (
    SELECT true AS yes FROM live_sessions s WHERE u.epoch IS NOT NULL AND s.connection_id = u.connection_id AND s.epoch = u.epoch AND NOT EXISTS (
      SELECT FROM queued_messages m WHERE m.connection_id = s.connection_id AND m.seq > coalesce(u.after_seq, s.since_seq)
        AND m.in_flight_epoch IS DISTINCT FROM s.epoch AND NOT pg_visible_in_snapshot(m.accepted_by, s.since) OFFSET 0)
    LIMIT 1) claimed ON true`
const CLAIMED_MS = `CASE WHEN in_flight_epoch IS NOT NULL THEN ${RECEIVED_MS} END`

/**
 * A key is known by its message, or by removed_keys. One that is known when the statement begins is not written at all: its message may be
 * removed before the insert comes to it, and what its removal left behind is not seen by this statement.
 * Uses queued_messages_idempotency_key and the primary key of removed_keys.
 */
const KNOWN = `LEFT JOIN LATERAL (
    SELECT true AS yes FROM (
      SELECT FROM queued_messages m
      WHERE u.idempotency_key IS NOT NULL AND m.connection_id = u.connection_id AND m.idempotency_key = u.idempotency_key
      UNION ALL SELECT FROM removed_keys k
      WHERE u.idempotency_key IS NOT NULL AND k.connection_id = u.connection_id AND k.idempotency_key = u.idempotency_key
        AND k.payload_hash = hashtextextended(u.payload, 0)) one
    LIMIT 1) known ON true`

/** Of a queue no more is read than tells that it has more than so many messages. Uses the primary key. */
const deep = (atMostMessages: string) => `LEFT JOIN LATERAL (
    SELECT true AS yes FROM (
      SELECT payload_bytes FROM queued_messages m
      WHERE u.at_most_bytes IS NOT NULL AND m.connection_id = u.connection_id ORDER BY m.seq LIMIT ${atMostMessages}::int + 1) head
    HAVING count(*) > ${atMostMessages} OR sum(payload_bytes) > u.at_most_bytes) deep ON true`

/** Of other instances: the sessions of this one are known to it, and one without a socket is told nothing. Uses live_sessions_pkey. */
const sessionsElsewhere = (connectionId: string, instanceId: string) =>
  `FROM live_sessions s WHERE s.connection_id = ${connectionId} AND s.instance_id <> ${instanceId}::uuid`

/** @param returning what is answered of each row that is written */
function insert(asked: Asked, from: string, place: (parameter: Parameter) => string, returning: string): string {
  const { times, keys, claims, bounds, several, many } = asked
  const columns = [
    ['connection_id', 'u.connection_id'],
    ...(many ? [['seq', 'u.seq']] : []),
    ['tag', `${place('tag')}::int`],
    ['recipient_dids', several ? 'u.dids::text[]' : 'ARRAY[u.dids]'],
    ['payload', 'u.payload'],
    ['payload_bytes', 'u.bytes'],
    ...(times ? [['received_at', 'u.received_at::timestamptz']] : []),
    ...(keys ? [['idempotency_key', 'u.idempotency_key']] : []),
    ...(claims
      ? [
          ['in_flight_epoch', 'CASE WHEN claimed.yes THEN u.epoch END'],
          ['in_flight_until', `CASE WHEN claimed.yes THEN now() + ${place('lease_ms')}::int * interval '1 ms' END`],
          ['in_flight_taken', 'CASE WHEN claimed.yes THEN false END'],
          ['deliveries', 'CASE WHEN claimed.yes THEN 1 ELSE 0 END'],
        ]
      : []),
  ]
  const subqueries = [...(claims ? [CLAIMED] : []), ...(keys ? [KNOWN] : []), ...(bounds ? [deep(place('at_most_messages'))] : [])]
  const unless = [...(keys ? ['known.yes IS NULL'] : []), ...(bounds ? ['deep.yes IS NULL'] : [])]
  return `INSERT INTO queued_messages (${columns.map(([column]) => column).join(', ')})
  SELECT ${columns.map(([, value]) => value).join(', ')} FROM ${from}
  ${subqueries.join('\n  ')}${unless.length > 0 ? ` WHERE ${unless.join(' AND ')}` : ''}
  ${keys ? 'ON CONFLICT (connection_id, idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING' : ''}
  RETURNING ${returning}`
}

/**
 * Whether somebody may have to be told; null when not. A subquery with a value and not EXISTS, for which Postgres may read all sessions into a
 * table of its own.
 */
const isAwaited = (instanceId: string) => `(SELECT true ${sessionsElsewhere('queued_messages.connection_id', instanceId)})`

/** What is answered of each row. Rows that are not written are not returned. */
function each({ keys, claims, bounds, pushes }: Asked, instanceId: string): string {
  const columns = claims // who claims it needs no telling
    ? ['seq', `CASE WHEN in_flight_epoch IS NULL THEN ${isAwaited(instanceId)} END AS is_awaited`, `${CLAIMED_MS} AS received_ms`]
    : ['seq', `${isAwaited(instanceId)} AS is_awaited`, 'NULL::float8 AS received_ms']
  return [...columns, ...(keys || bounds || pushes ? ['connection_id', 'idempotency_key'] : [])].join(', ')
}

/**
 * One row for all: the first seq, from which the others follow in the order of the messages; how many were written; and the connections for which somebody
 * may have to be told. While no other instance runs there is nobody to look for. Uses the primary key of instances.
 */
const insertMany = (added: string, instanceId: string, connectionIds: string) => `WITH first AS MATERIALIZED (
    SELECT nextval('queued_messages_seq_seq') AS seq),
  added AS (${added})
  SELECT seq, (SELECT count(*)::int FROM added), CASE WHEN (SELECT true FROM instances WHERE instance_id <> ${instanceId}::uuid LIMIT 1)
    THEN (SELECT array_agg(s.connection_id) ${sessionsElsewhere(`ANY (${connectionIds}::text[])`, instanceId)}) END
  FROM first`
const FIRST_SEQ = '(SELECT seq FROM first)'

// Uses the primary keys of push_outbox, push_tokens, live_sessions and instances.
const insertAndOwe = (source: string, added: string) => `WITH u AS MATERIALIZED (
    SELECT * FROM ${source}),
  added AS (${added}),
  dead AS MATERIALIZED (
    SELECT o.token_hash FROM push_outbox o WHERE o.token_hash IN (SELECT token_hash FROM u WHERE token_hash IS NOT NULL) AND o.state = 'dead'),
  given AS MATERIALIZED (
    SELECT DISTINCT connection_id, token_hash, type, project, token FROM u
    WHERE token_hash IS NOT NULL AND token_hash NOT IN (SELECT token_hash FROM dead)),
  offline AS (SELECT a.connection_id, min(a.seq) AS from_seq FROM added a WHERE NOT ${isLive('a')} GROUP BY a.connection_id),
  targets AS (
    SELECT * FROM given
    UNION ALL
    SELECT t.connection_id, t.token_hash, t.type, t.project, t.token FROM push_tokens t
    WHERE t.connection_id IN (SELECT connection_id FROM u) AND t.token IS NOT NULL
      AND t.connection_id NOT IN (SELECT connection_id FROM given)),
  ${OWED_BY_MESSAGES},
  kept AS ( -- what setPushToken registered stays
    INSERT INTO push_tokens AS t (connection_id, token_hash, type, project, token, ending, registered)
    SELECT DISTINCT ON (g.connection_id) g.connection_id, g.token_hash, g.type, g.project, g.token, right(g.token, 6), false
    FROM given g LEFT JOIN push_tokens p ON p.connection_id = g.connection_id
    WHERE p.connection_id IS NULL OR p.token IS NULL OR NOT p.registered AND p.token_hash <> g.token_hash
    ORDER BY g.connection_id
    ON CONFLICT (connection_id) DO UPDATE SET token_hash = excluded.token_hash, type = excluded.type, project = excluded.project,
      token = excluded.token, ending = excluded.ending, registered = false, updated_at = now()
    WHERE t.token IS NULL OR NOT t.registered)
  SELECT a.seq, a.is_awaited, a.received_ms, a.connection_id, a.idempotency_key, (SELECT count(*) FROM reasons) > 0, (SELECT array_agg(token_hash) FROM dead) FROM added a ORDER BY a.seq`

function compose(asked: Asked): AddStatement {
  const parameters = parametersOf(asked)
  const place = (parameter: Parameter) => `$${parameters.indexOf(parameter) + 1}`
  const arrays = parameters.filter((parameter) => !SCALARS.has(parameter))
  const [connectionIds, instanceId] = [place('connection_id'), place('instance_id')]
  // Not one unnest of all in FROM: Postgres would write all rows, with their payloads, into a store of their own and read them from there.
  const values = arrays.map((one) => `unnest(${place(one)}::${TYPES[one] ?? 'text'}[]) AS ${one}`)
  if (asked.many) values.push(`generate_series(${FIRST_SEQ}, ${FIRST_SEQ} + cardinality(${connectionIds}::text[]) - 1) AS seq`)
  const source = `(SELECT ${values.join(', ')}) u`
  const added = insert(asked, asked.pushes ? 'u' : source, place, asked.many ? '1' : each(asked, instanceId))
  const text = asked.many ? insertMany(added, instanceId, connectionIds) : asked.pushes ? insertAndOwe(source, added) : added
  const what = Object.entries(asked).flatMap(([one, isAsked]) => (isAsked ? [one] : []))
  return { name: ['add', ...what].join('_'), text, parameters }
}

const composed = new Map<number, AddStatement>()

/** The insert for a batch that asks for this. There are at most 68 of them. */
export function addStatement(asked: Asked): AddStatement {
  const { times, keys, claims, bounds, pushes, several, many } = asked
  const which =
    Number(times) |
    (Number(keys) << 1) |
    (Number(claims) << 2) |
    (Number(bounds) << 3) |
    (Number(pushes) << 4) |
    (Number(several) << 5) |
    (Number(many) << 6)
  let statement = composed.get(which)
  if (!statement) composed.set(which, (statement = compose(asked)))
  return statement
}
