import type { JsonBytes, JsonText } from './json.js'
import type { Told } from './told.js'

/**
 * What the queue needs from the world. Each port states the promise that every backend keeps; `test/contracts/` holds
 * them to it.
 */

export interface NewMessage {
  connectionId: string
  recipientDids: readonly string[]
  payload: JsonBytes
  payloadBytes: number
  /** ISO 8601; the store's own time when absent. */
  receivedAt?: string
  idempotencyKey?: string
  /** Wakes the mediatee when it has no live session. */
  pushToken?: PushToken
  /** The live session that it could be delivered in at once, and the last message before which nothing can turn up that it was not given. */
  claimFor?: { epoch: number; after: string | undefined; leaseMs: number }
  /** It is stored only when no more than this is stored for its connection already. */
  ifAtMost?: { messages: number; bytes: number }
}

export interface Added {
  id: string
  /** When pushes are on: one is owed to it, or to a message that was stored together with it; or the token that came with it is dead. */
  push?: 'owed' | 'token is dead'
  /** It is marked as pushed in the session of `claimFor`, whose owner has to send it now. */
  claimed?: { receivedAt: string }
  /**
   * No other instance had a live session of its connection when the store began to write it. So none has to be told, but for one that opened
   * a session while it was written, and looks again (looking-again.ts).
   */
  nobodyElseIsLive?: true
}

export interface StoredMessage {
  id: string
  /** ISO 8601, UTC, milliseconds. */
  receivedAt: string
  encryptedMessage: JsonText
}

export interface DeliverableMessage extends StoredMessage {
  payloadBytes: number
  /** How many times it has been pushed down a socket, this time included. */
  deliveries: number
}

export interface Take {
  connectionId: string
  recipientDid?: string
  limit: number
  /** The first message is returned even when it alone is larger. */
  limitBytes: number
  /** Read and delete in one statement. */
  remove: boolean
  /** How long a taken message stays in flight while its connection has a live session; 0 switches that off. */
  leaseMs: number
}

export interface Claim {
  connectionId: string
  /** The session that will deliver. A claim for a session that is not the current one finds nothing. */
  epoch: number
  limit: number
  limitBytes: number
  /** A message larger than `limitBytes` may be claimed, by itself. */
  alone: boolean
  leaseMs: number
  /** When an add or a claim failed, perhaps after it had marked: the ids that are sent and not removed. What else is marked as pushed once was never sent. */
  sent?: readonly string[]
}

/**
 * The queue itself. It is the truth: a call that returned has been committed, and a call that failed says so by throwing.
 *
 * Per connection, messages are ordered as the store accepted them: a message whose `add` returned before another `add`
 * was called comes first. Adds of one process for one connection are accepted in the order in which they were called.
 *
 * In flight is a fact about a message *and* the current live session of its connection: a message marked for a session
 * stops being in flight the moment that session is closed or displaced, without being touched.
 */
export interface MessageStore {
  /**
   * With an `idempotencyKey` seen before on this connection, the id is that of the first message, and nothing is stored: while that message is
   * there, and, with the same payload, for a while after it was removed (the add may be repeated because its answer was lost). When pushes are on and the
   * connection has no live session, the push that is owed is committed with the message. With `claimFor` it is claimed as by `claim`,
   * if that session is the current one and was given all that came before.
   * It fails with `quota_exceeded` when there is more than `ifAtMost`, which concurrent adds to one connection give alike; nothing was stored.
   */
  add(message: NewMessage, told: Told<Added>): void
  /** The id that `add` would answer because of the idempotencyKey. */
  idOfKey(message: NewMessage): Promise<string | undefined>
  /** Oldest first. With `remove`, no message is given to two callers. */
  take(take: Take): Promise<StoredMessage[]>
  /** Not removed, not expired, not in flight. */
  count(connectionId: string, recipientDid?: string): Promise<number>
  /** Unknown ids are fine. */
  remove(connectionId: string, ids: readonly string[]): Promise<void>
  /** @returns the ids that were removed. */
  removeAll(connectionId: string, recipientDid: string): Promise<string[]>
  /** All that is stored for the connection, in flight or not. */
  depth(connectionId: string): Promise<{ messages: number; bytes: number }>
  /**
   * Marks what arrived during the session and is not in flight as pushed in it, oldest first, and returns it.
   * `more` is true when something was left only because of the limits. `state` says whether the session is the
   * connection's current one, or another one is, or none is.
   */
  claim(claim: Claim): Promise<{ messages: DeliverableMessage[]; more: boolean; state: 'current' | 'replaced' | 'ended' }>
  /** Deletes up to `limit` messages past their time. @returns how many. */
  expire(limit: number): Promise<number>
  /** Forgets up to `limit` idempotency keys whose messages were removed long enough ago, and what else is over. */
  sweep(limit: number): Promise<void>
  /** Throws unless the store answers. */
  ping(): Promise<void>
}

export interface OpenedSession {
  /** Grows with every session of every connection: of two sessions of one connection the larger is the newer. */
  epoch: number
  /** The instance and epoch of the session that was displaced, when there was one. */
  former?: { instanceId: string | undefined; epoch: number }
}

/**
 * Which connection is live, and on which instance: the shared half of a live session (the socket is the other).
 * A session with a socket counts as long as its instance renews the lease; one without lasts `ttlMs`.
 */
export interface SessionDirectory {
  readonly instanceId: string
  /** Records this instance as owner and releases what a former session had in flight, in one transaction. */
  open(session: { connectionId: string; sessionId: string; ttlMs?: number }): Promise<OpenedSession>
  /** Ends the session of the connection, if it is the one with this `epoch` and `sessionId` (where given). */
  close(session: { connectionId: string; epoch?: number; sessionId?: string }): Promise<OpenedSession['former']>
  /** Ends those that are still current, in one statement. */
  closeMany(sessions: readonly { connectionId: string; epoch: number }[]): Promise<void>
  /** Ends all sessions of this instance, and its lease, in one statement. */
  closeAll(): Promise<void>
  isLive(connectionId: string): Promise<boolean>
  /** Keeps the sessions of this instance alive for another lease. */
  renew(): Promise<void>
  /** The live sessions of this instance, or of these connections, for which `claim` would find something. One query. */
  waiting(leaseMs: number, connectionIds?: readonly string[]): Promise<{ connectionId: string; epoch: number }[]>
  /** Deletes what is over for good: the sessions of instances that crashed a day ago, and sessions past their `ttlMs`. */
  sweep(): Promise<void>
}

/**
 * Tells instances that something happened to a connection: a message was added, or its live session changed. A hint carries
 * nothing else. It may be lost, late, repeated or forged, so whoever gets one looks into the store.
 */
export interface PubSub {
  /** Never waits and never throws: what cannot be published is lost, and the reconciler makes up for it. */
  publish(connectionId: string): void
  /** Resolves once hints published from now on arrive, or at once when the bus is down. @returns unsubscribe */
  subscribe(connectionId: string, onHint: () => void): Promise<() => Promise<void>>
  /** Whether hints of other instances arrive now. */
  isUp(): boolean
  close(): Promise<void>
}

/** A device's address at a push service. */
export interface PushToken {
  /** The push service. */
  type: string
  /** Which of several projects of that service; the default one when absent. */
  project?: string
  token: string
}

/** What is told about the token of a connection. The token itself is not given back. */
export interface KnownPushToken {
  type: string
  project?: string
  /** Its last 6 characters. */
  ending: string
  /** ISO 8601: when it was set. */
  since: string
  /** Why the push service will not take it any more. */
  dead?: string
}

/** A push whose time has come, claimed by this instance. */
export interface DuePush {
  /** Of the token. */
  key: string
  claim: number
  token: PushToken
  /** One that it is for, and the newest message there. */
  connectionId: string
  seq: string | null
  /** Sendings that failed before this one. */
  attempts: number
  /** Milliseconds since the newest reason for it. */
  ageMs: number
}

export type PushSettlement =
  | { as: 'sent' }
  /** Given up, refused or not needed: nothing is owed until something new happens. */
  | { as: 'over' }
  /** Tried again later; `failed` when it counts as an attempt. */
  | { as: 'again'; afterMs: number; failed: boolean }
  | { as: 'dead'; reason: string }

/**
 * The pushes that are owed, kept with the messages: `MessageStore.add` owes one when nobody is live, the end of a live session
 * owes one when it leaves mail behind. At most one is owed to a token, and between two that were sent to it lies a window.
 * A push that was claimed by an instance which dies is claimed again by another.
 */
export interface PushOutbox {
  /** Registers the token; one that was dead is tried again. */
  setToken(connectionId: string, token: PushToken): Promise<void>
  getToken(connectionId: string): Promise<KnownPushToken | undefined>
  /** @returns whether there was one. What is owed to it because of this connection is cancelled. */
  removeToken(connectionId: string): Promise<boolean>
  /** Owes a push, although there is a live session, because messages delivered in it come back un-acked. */
  remind(connectionId: string): Promise<void>
  /** Up to `limit` pushes that are due and needed. What is due and no longer needed is settled and only counted. */
  claim(limit: number): Promise<{ due: DuePush[]; cancelled: number }>
  /** @returns for a dead token, the connections that it was registered for. Nothing happens when the claim has run out. */
  settle(push: DuePush, settlement: PushSettlement): Promise<string[]>
  /** Forgets windows that are over and tokens that have long been dead. */
  sweep(): Promise<void>
}

/** How one queue stands. */
export interface QueueSummary {
  /** All that is stored, in flight or not, as `MessageStore.depth` counts it. */
  messages: number
  bytes: number
  /** ISO 8601, like all times here; the earliest of its messages. Absent when there are none. */
  oldestReceivedAt?: string
  oldestAcceptedAt?: string
  /** Messages that `claim` will not return any more, in whatever session, because they were delivered in vain too often. */
  parked: number
}

/** What is told of a message. Never its payload, nor its DIDs. */
export interface MessageMetadata {
  id: string
  bytes: number
  /** How many. */
  recipientDids: number
  receivedAt: string
  acceptedAt: string
  deliveries: number
}

export interface KnownLiveSession {
  sessionId: string
  instanceId?: string
  since: string
  expiresAt?: string
}

/** Absent `next`: this was the last page. A `cursor` is the `next` of a page of the same list. */
export interface Page<Item> {
  items: Item[]
  next?: string
}

export interface PageRequest {
  limit: number
  cursor?: string
}

/** Which messages of a connection. All conditions hold together. */
export interface Selection {
  connectionId: string
  olderThanSeconds?: number
  ids?: readonly string[]
}

/**
 * What the operator asks about the queue, and does to it. It shows sizes, times and names of connections, and nothing that tells who
 * writes to whom.
 *
 * A page is cut by value and not by number, so an item that does not change is on exactly one page, whatever is added or removed
 * meanwhile. Lists across connections may read the whole queue; every call ends within seconds all the same, by failing as
 * `timeout` if it must. However long it takes, no other port waits for it.
 *
 * A cursor that is not of this list is refused as `invalid_params`.
 */
export interface Administration {
  /** Connections that have messages, those with most of it first; of equals, any order that stays. */
  connections(
    page: PageRequest & { by: 'depth' | 'age' | 'bytes' },
  ): Promise<Page<QueueSummary & { connectionId: string; isLive: boolean }>>
  summary(connectionId: string): Promise<QueueSummary>
  /** The session that counts now, on whatever instance. */
  liveSession(connectionId: string): Promise<KnownLiveSession | undefined>
  /** Oldest first. `inFlight` only for what is in flight now. */
  messages(
    page: PageRequest & { connectionId: string },
  ): Promise<Page<MessageMetadata & { inFlight?: { by: 'take' | 'delivery'; until: string } }>>
  /** By connection, oldest first. */
  parked(page: PageRequest): Promise<Page<MessageMetadata & { connectionId: string }>>
  /** `upTo` marks the newest of them; absent when there are none. */
  measure(selection: Selection): Promise<{ messages: number; bytes: number; upTo?: string }>
  /** Deletes of the selection, oldest first and up to that mark, as many as one short transaction should. @returns none when all are gone */
  purge(selection: Selection & { upTo: string }): Promise<{ ids: string[]; bytes: number }>
}

/** Hands a wake-up to a push service. A refusal is a value; it throws only for a bug. */
export interface PushSender {
  /** By name; the first is the default. */
  readonly projects: readonly string[]
  /** Says why a token cannot be sent to (type, project), or nothing. */
  refuses(token: PushToken): string | undefined
  /** @returns within the sender's own time-out, and nothing goes out after it did */
  send(token: PushToken, connectionId: string): Promise<PushOutcome>
}

export type PushOutcome =
  | { kind: 'accepted' }
  /** For good, whatever is sent. */
  | { kind: 'dead'; reason: string }
  /** This push, for good. */
  | { kind: 'rejected'; reason: string }
  /** For now. `everybody`: it is not about this token, so others of the project will fare the same. */
  | { kind: 'failed'; reason: string; everybody: boolean; retryAfterMs?: number }

/** The part of a logger that the queue uses (pino's). */
export interface Log {
  debug(facts: object, text: string): void
  info(facts: object, text: string): void
  warn(facts: object, text: string): void
  error(facts: object, text: string): void
}

/** Milliseconds that only grow; nothing in the store is decided by it. */
export type Clock = () => number
