import { sql } from 'drizzle-orm'
import {
  bigint,
  bigserial,
  boolean,
  customType,
  index,
  integer,
  pgTable,
  primaryKey,
  smallint,
  text,
  timestamp,
  uniqueIndex,
  uuid,
} from 'drizzle-orm/pg-core'

const xid8 = customType<{ data: string }>({ dataType: () => 'xid8' })
const snapshot = customType<{ data: string }>({ dataType: () => 'pg_snapshot' })
const time = (name: string) => timestamp(name, { withTimezone: true })

/**
 * The queue. Every hot query is keyed by connection_id and served by the primary key, so its cost does not depend on
 * other queues, and the table can be partitioned or distributed by that column.
 */
export const queuedMessages = pgTable(
  'queued_messages',
  {
    connectionId: text('connection_id').notNull(),
    /**
     * The order of the queue, given by the database. A plain sequence and not an identity: Postgres 16 has none on partitioned tables. It goes
     * on by 256 (migration 0006), so that many messages together draw one and take those that follow.
     */
    seq: bigserial('seq', { mode: 'number' }).notNull(),
    /**
     * The second half of the id, random for each process. A Postgres that was restored from a backup or failed over
     * gives out the same seq again: the late ack of a lost message must not remove a new one.
     */
    tag: integer('tag').notNull(),
    recipientDids: text('recipient_dids').array().notNull(),
    /** The JSON text as it came in. jsonb refuses \u0000 and reorders keys. */
    payload: text('payload').notNull(),
    /** So that limits and quotas need not read the payload. */
    payloadBytes: integer('payload_bytes').notNull(),
    /** The mediator's word, when it gave one; informational. */
    receivedAt: time('received_at'),
    acceptedAt: time('accepted_at').notNull().defaultNow(),
    /** With live_sessions.since it tells exactly what arrived during a session: a smaller seq may be committed later. */
    acceptedBy: xid8('accepted_by')
      .notNull()
      .default(sql`pg_current_xact_id()`),
    idempotencyKey: text('idempotency_key'),
    /** In flight while this is the epoch of the connection's live session and the time is not over. */
    inFlightEpoch: bigint('in_flight_epoch', { mode: 'number' }),
    inFlightUntil: time('in_flight_until'),
    /** Taken: hidden from take and count. Otherwise it was pushed: hidden from the count only. */
    inFlightTaken: boolean('in_flight_taken'),
    /** How many times it was pushed down a socket. */
    deliveries: smallint('deliveries').notNull().default(0),
  },
  (table) => [
    primaryKey({ columns: [table.connectionId, table.seq] }),
    uniqueIndex('queued_messages_idempotency_key')
      .on(table.connectionId, table.idempotencyKey)
      .where(sql`${table.idempotencyKey} is not null`),
    /** For expiry. */
    index('queued_messages_accepted_at').on(table.acceptedAt),
  ],
)

/**
 * The idempotency keys of messages that were removed a short while ago. The answer to an add may be lost, its message delivered and removed,
 * and only then the add repeated: without this the message would come a second time.
 */
export const removedKeys = pgTable(
  'removed_keys',
  {
    connectionId: text('connection_id').notNull(),
    idempotencyKey: text('idempotency_key').notNull(),
    seq: bigint('seq', { mode: 'number' }).notNull(),
    tag: integer('tag').notNull(),
    /** Another payload under the same key is another message. */
    payloadHash: bigint('payload_hash', { mode: 'bigint' }).notNull(),
    removedAt: time('removed_at').notNull().defaultNow(),
  },
  (table) => [
    primaryKey({ columns: [table.connectionId, table.idempotencyKey] }),
    /** For the sweep. */
    index('removed_keys_removed_at').on(table.removedAt),
  ],
)

/**
 * How many messages of a deep queue there were up to a seq, so that a count need not read them. plugins/storage/tallies.ts tells
 * why it stays exact.
 */
export const queueTallies = pgTable(
  'queue_tallies',
  {
    connectionId: text('connection_id').notNull(),
    id: bigserial('id', { mode: 'number' }).notNull(),
    upToSeq: bigint('up_to_seq', { mode: 'number' }).notNull(),
    /** Null while it is being made. */
    messages: bigint('messages', { mode: 'number' }),
    bytes: bigint('bytes', { mode: 'number' }),
    begunAt: time('begun_at').notNull().defaultNow(),
    /** When all of them were last read. */
    countedAt: time('counted_at'),
  },
  (table) => [primaryKey({ columns: [table.connectionId, table.id] })],
)

/** What was removed of a tally since it was begun: rows are only added, so that no removal waits for another. Written by a trigger. */
export const talliedRemovals = pgTable(
  'tallied_removals',
  {
    tallyId: bigint('tally_id', { mode: 'number' }).notNull(),
    messages: bigint('messages', { mode: 'number' }).notNull(),
    bytes: bigint('bytes', { mode: 'number' }).notNull(),
  },
  (table) => [index('tallied_removals_tally_id').on(table.tallyId)],
)

/** One row per running process. Its sessions count while the lease runs. */
export const instances = pgTable('instances', {
  instanceId: uuid('instance_id').primaryKey(),
  leaseUntil: time('lease_until').notNull(),
  /** When another instance found that the lease had run out and had seen to all its sessions; null while it is renewed. */
  missedAt: time('missed_at'),
})

/** The current live session of each connection that has one. */
export const liveSessions = pgTable(
  'live_sessions',
  {
    connectionId: text('connection_id').primaryKey(),
    sessionId: text('session_id').notNull(),
    /** New for every session: what was in flight for a former epoch no longer is. */
    epoch: bigserial('epoch', { mode: 'number' }).notNull(),
    /** Null for a session without a socket, which lasts until expires_at. */
    instanceId: uuid('instance_id'),
    expiresAt: time('expires_at'),
    /** For the operator; nothing is decided by it. */
    openedAt: time('opened_at').notNull().defaultNow(),
    /** What this does not contain arrived during the session and is delivered; the rest is backlog and waits to be taken. */
    since: snapshot('since')
      .notNull()
      .default(sql`pg_current_snapshot()`),
    /** Its instance's lease ran out, and what that owes has been written. */
    missed: boolean('missed').notNull().default(false),
    /** Nothing that arrived during the session has a seq up to this: where a search for it may begin. */
    sinceSeq: bigint('since_seq', { mode: 'number' }).notNull(),
  },
  (table) => [
    index('live_sessions_instance_id').on(table.instanceId),
    index('live_sessions_expires_at')
      .on(table.expiresAt)
      .where(sql`${table.expiresAt} is not null`),
  ],
)

/** Where to wake the mediatee of a connection. */
export const pushTokens = pgTable(
  'push_tokens',
  {
    connectionId: text('connection_id').primaryKey(),
    tokenHash: text('token_hash').notNull(),
    type: text('type').notNull(),
    project: text('project').notNull(),
    /** Null once the push service said that it is dead, or it was removed. */
    token: text('token'),
    /** Its last characters, to be shown; empty when it was removed. */
    ending: text('ending').notNull(),
    /** By setPushToken; otherwise it came with a message, and gives way to the next one that does. */
    registered: boolean('registered').notNull(),
    /** Mail up to this one that a session left behind has had its push: a message that is never removed must not wake for ever. */
    remindedSeq: bigint('reminded_seq', { mode: 'number' }).notNull().default(0),
    updatedAt: time('updated_at').notNull().defaultNow(),
  },
  (table) => [
    /** For a token that died: it may wake several connections. */
    index('push_tokens_token_hash').on(table.tokenHash),
  ],
)

/**
 * The device tokens that a push is or was owed to, one row for each, so that there is at most one push and one window for it.
 * The life of a row is told in plugins/storage/postgres-outbox.ts.
 */
export const pushOutbox = pgTable(
  'push_outbox',
  {
    /** SHA-256 of type, project and token: a token may be too long for an index. */
    tokenHash: text('token_hash').primaryKey(),
    type: text('type').notNull(),
    project: text('project').notNull(),
    token: text('token').notNull(),
    state: text('state', { enum: ['owed', 'sending', 'resting', 'dead'] }).notNull(),
    /** owed: when it is due. sending: when the claim runs out. resting: the end of the window. dead: when it is forgotten. */
    nextAt: time('next_at').notNull(),
    /** The newest reason to push; giving up counts from it. */
    owedSince: time('owed_since').notNull(),
    attempts: smallint('attempts').notNull().default(0),
    /** Who is sending: a claim that ran out can settle nothing. */
    claim: bigint('claim', { mode: 'number' }),
    /** Something owed a push while one was being sent; due then. */
    againAt: time('again_at'),
    windowUntil: time('window_until'),
    /** The newest message that the last push was for: while it is there and no session ended since, the mediatee has not come. */
    sentConnectionId: text('sent_connection_id'),
    sentSeq: bigint('sent_seq', { mode: 'number' }),
    /** Why the token is dead. */
    reason: text('reason'),
  },
  (table) => [
    /** For the workers. */
    index('push_outbox_due')
      .on(table.nextAt)
      .where(sql`${table.state} in ('owed', 'sending')`),
    /** For the sweep. */
    index('push_outbox_over')
      .on(table.nextAt)
      .where(sql`${table.state} in ('resting', 'dead')`),
  ],
)

/** What a push is owed for: one token may wake the mediatees of several connections. Written under the lock of the outbox row. */
export const pushReasons = pgTable(
  'push_reasons',
  {
    tokenHash: text('token_hash').notNull(),
    connectionId: text('connection_id').notNull(),
    /** The push is needed while a message from this one on is there. */
    fromSeq: bigint('from_seq', { mode: 'number' }).notNull(),
    /** A session left messages behind, or does not remove what it is given: there is one such push for a message. */
    reminds: boolean('reminds').notNull(),
    /** The session lives on. */
    despiteLive: boolean('despite_live').notNull(),
    /** Not looked at before this: the mediatee may come back, and adds that saw its session are committed by then. */
    notBefore: time('not_before').notNull(),
    /** Of the sending that answers to it; null when it came up since. */
    claim: bigint('claim', { mode: 'number' }),
    /** The newest message at that time. */
    toSeq: bigint('to_seq', { mode: 'number' }),
  },
  (table) => [primaryKey({ columns: [table.tokenHash, table.connectionId] })],
)
