import { randomInt } from 'node:crypto'
import { CallError } from '../../src/errors.js'
import type { Added, MessageStore, NewMessage, PushToken } from '../../src/ports.js'
import { addStatement, SEQS_IN_A_ROW, type Asked, type Parameter } from './add-statements.js'
import { bigintArray, intArray, textArray, utf8Array } from './binary-array.js'
import { createCoalescer } from './coalesce.js'
import { formatId, MAX_TAG, parseId } from './message-id.js'
import { hashOf } from './owing.js'
import { isRefusedValue, type Query, type Statement } from './query.js'

/*
 * Adding: concurrent calls become multi-row inserts. With push, the same statement owes the pushes: for a message whose
 * connection has no live session, to the token that came with it or, without one (or with a dead one), to the connection's.
 *
 * A message that this process can deliver itself is marked as pushed by the insert, so that no `claim` has to read and write it again.
 */

export const byKey: Statement = {
  name: 'by_key',
  text: `SELECT seq, tag FROM (
    SELECT seq, tag, 1 AS place FROM removed_keys
    WHERE connection_id = $1 AND idempotency_key = $2 AND payload_hash = hashtextextended($3, 0)
    UNION ALL SELECT seq, tag, 2 FROM queued_messages WHERE connection_id = $1 AND idempotency_key = $2) known ORDER BY place LIMIT 1`,
}

// A batch is bounded so that one of large payloads neither stalls the event loop nor runs into statement_timeout.
const BATCH = { atOnce: 2, maxItems: 200, maxBytes: 1024 * 1024, maxWaitingBytes: 256 * 1024 * 1024, maxWaitMs: 1_000 }

/** What one answer for all costs more is made up for by so many. docs/decisions/0008 */
const MANY = 64

type AddedRow = [
  seq: string,
  isAwaited: true | null,
  receivedMs: number | null,
  connectionId?: string,
  idempotencyKey?: string | null,
  isPushOwed?: boolean,
  deadTokens?: string[] | null,
]

export interface AddingOptions {
  query: Query
  /** Of this process, in the session directory. */
  instanceId: string
  /** Whether messages owe pushes. */
  pushes: boolean
}

export function createAdding({ query, instanceId, pushes }: AddingOptions): Pick<MessageStore, 'add' | 'idOfKey'> {
  const tag = randomInt(MAX_TAG)
  const ending = formatId('', tag)
  const add = createCoalescer({
    ...BATCH,
    key: (message: NewMessage) => message.connectionId,
    bytes: (message: NewMessage) => message.payloadBytes,
    flush: addBatch,
  })
  return { add, idOfKey }

  /** Each message is answered after the commit of its own row. One that Postgres refuses fails alone. */
  async function addBatch(messages: NewMessage[]): Promise<(Added | Error)[]> {
    try {
      const asked = askedOf(messages)
      if (asked.many) return await addMany(messages, asked)
      return await (asked.keys || asked.bounds ? addUnless(messages, asked) : addPlain(messages, asked))
    } catch (error) {
      if (messages.length === 1) return [error instanceof CallError ? error : refused(error)]
      if (!isRefusedValue(error)) throw error
      const results: (Added | Error)[] = []
      for (const message of messages) results.push(...(await addBatch([message])))
      return results
    }
  }

  function askedOf(messages: NewMessage[]): Asked {
    const asked = { times: false, keys: false, claims: false, bounds: false, pushes, several: false, many: false }
    for (const { receivedAt, idempotencyKey, claimFor, ifAtMost, recipientDids } of messages) {
      if (receivedAt !== undefined) asked.times = true
      if (idempotencyKey !== undefined) asked.keys = true
      if (claimFor) asked.claims = true
      if (ifAtMost) asked.bounds = true
      if (recipientDids.length !== 1) asked.several = true
    }
    const { keys, claims, bounds } = asked
    asked.many = messages.length >= MANY && messages.length <= SEQS_IN_A_ROW && !(keys || claims || bounds || pushes)
    return asked
  }

  async function addMany(messages: NewMessage[], asked: Asked): Promise<Added[]> {
    const [row] = await insert<[first: string, stored: number, awaited: string[] | null]>(messages, asked)
    const [first, stored, awaited] = row!
    allStored(stored, messages)
    const isAwaited = new Set(awaited)
    return messages.map(({ connectionId }, i) => {
      const id = `${Number(first) + i}${ending}`
      return isAwaited.has(connectionId) ? { id } : { id, nobodyElseIsLive: true }
    })
  }

  async function addPlain(messages: NewMessage[], asked: Asked): Promise<Added[]> {
    const rows = await insert<AddedRow>(messages, asked)
    allStored(rows.length, messages)
    return rows.map((row, i) => toAdded(row, messages[i]!))
  }

  async function addUnless(messages: NewMessage[], asked: Asked): Promise<(Added | Error)[]> {
    // A key twice: with another payload it may be another message, and rows that come back are told apart by their keys.
    const keys = new Set<string>()
    const firsts = messages.filter(({ connectionId, idempotencyKey }) => {
      if (idempotencyKey === undefined) return true
      const key = `${connectionId}\n${idempotencyKey}`
      return !keys.has(key) && keys.add(key)
    })
    const rows = await insert<AddedRow>(firsts, asked)
    // They come back in the order in which they were written, without those that were not.
    const results = new Map<NewMessage, Added>()
    for (const message of firsts) {
      const row = rows[results.size]
      if (row?.[3] === message.connectionId && row[4] === (message.idempotencyKey ?? null)) results.set(message, toAdded(row, message))
    }
    const all: (Added | Error)[] = []
    for (const message of messages) all.push(results.get(message) ?? (await notAdded(message)))
    return all
  }

  function insert<Row extends unknown[]>(messages: NewMessage[], asked: Asked): Promise<Row[]> {
    const statement = addStatement(asked)
    const values = valuesOf(messages, asked, { tag, instanceId })
    return query<Row>(
      statement,
      statement.parameters.map((parameter) => values[parameter]()),
    )
  }

  /** Why not: its key was known, or there is too much before it. */
  async function notAdded(message: NewMessage): Promise<Added | Error> {
    for (;;) {
      const first = await idOfKey(message)
      if (first !== undefined) return { id: first }
      if (message.ifAtMost)
        return new CallError('quota_exceeded', 'The queue of this connection has more than was to be added to. Nothing was stored.')
      // Its key has expired since and is free again.
      const [row] = await insert<AddedRow>([message], askedOf([message]))
      if (row) return toAdded(row, message)
    }
  }

  async function idOfKey({ connectionId, idempotencyKey, payload }: NewMessage): Promise<string | undefined> {
    if (idempotencyKey === undefined) return undefined
    const [first] = await query<[string, number]>(byKey, [connectionId, idempotencyKey, payload])
    return first && formatId(...first)
  }

  function toAdded([seq, isAwaited, receivedMs, , , isPushOwed = false, deadTokens]: AddedRow, { pushToken }: NewMessage): Added {
    const added: Added = { id: seq + ending }
    if (receivedMs !== null) added.claimed = { receivedAt: new Date(receivedMs).toISOString() }
    else if (isAwaited === null) added.nobodyElseIsLive = true
    if (deadTokens && pushToken && deadTokens.includes(hashOf(pushToken))) added.push = 'token is dead'
    else if (isPushOwed) added.push = 'owed'
    return added
  }
}

function allStored(stored: number, { length }: NewMessage[]): void {
  if (stored !== length) throw new Error(`${stored} of ${length} messages were stored: does a trigger that is not ours drop rows?`)
}

/** What the parameters of an insert are, for those that it has. */
function valuesOf(
  messages: readonly NewMessage[],
  { several }: Asked,
  { tag, instanceId }: { tag: number; instanceId: string },
): Record<Parameter, () => unknown> {
  const texts = (read: (message: NewMessage) => string | undefined) => () => textArray(messages.map(read))
  const ofToken = (read: (token: PushToken) => string) => texts(({ pushToken }) => pushToken && read(pushToken))
  const sessions = once(() => sessionsOf(messages))
  const bounds = once(() => boundsOf(messages))
  return {
    tag: () => tag,
    instance_id: () => instanceId,
    lease_ms: () => sessions().find((session) => session)?.leaseMs ?? 0,
    at_most_messages: () => bounds().find((bound) => bound)?.messages ?? 0,
    connection_id: texts((message) => message.connectionId),
    dids: texts(({ recipientDids }) => (several ? arrayLiteral(recipientDids) : recipientDids[0])),
    bytes: () => intArray(messages.map((message) => message.payloadBytes)),
    received_at: texts((message) => message.receivedAt),
    idempotency_key: texts((message) => message.idempotencyKey),
    epoch: () => bigintArray(sessions().map((session) => session?.epoch)),
    after_seq: () => bigintArray(sessions().map((session) => session?.after && parseId(session.after)?.seq)),
    at_most_bytes: () => bigintArray(bounds().map((bound) => bound?.bytes)),
    token_hash: ofToken(hashOf),
    type: ofToken(({ type }) => type),
    project: ofToken(({ project }) => project ?? ''),
    token: ofToken(({ token }) => token),
    payload: () => utf8Array(messages.map(({ payload }) => payload)),
  }
}

function once<T>(make: () => T): () => T {
  let made: T | undefined
  return () => (made ??= make())
}

/**
 * The session that each message may be claimed for. Not one that stands behind another message to the same connection which is not: rows
 * of the statement itself are not seen by it.
 */
function sessionsOf(messages: readonly NewMessage[]): (NewMessage['claimFor'] | undefined)[] {
  const unclaimed = new Set<string>()
  return messages.map(({ connectionId, claimFor }) => {
    if (claimFor && !unclaimed.has(connectionId)) return claimFor
    unclaimed.add(connectionId)
    return undefined
  })
}

/** The bound of one message is that of all to its connection: they are written or not, so the rows that come back tell which they are. */
function boundsOf(messages: readonly NewMessage[]): NewMessage['ifAtMost'][] {
  const bounds = new Map<string, NewMessage['ifAtMost']>()
  for (const { connectionId, ifAtMost } of messages) if (ifAtMost) bounds.set(connectionId, ifAtMost)
  return messages.map(({ connectionId }) => bounds.get(connectionId))
}

function refused(error: unknown): Error {
  return isRefusedValue(error)
    ? new CallError('invalid_params', 'The store refused a value of this message. Nothing was stored.', {}, error)
    : (error as Error)
}

/** unnest would flatten an array of arrays, so each inner one travels as its text. */
function arrayLiteral(texts: readonly string[]): string {
  return `{${texts.map(quoted).join(',')}}`
}

const TO_ESCAPE = /["\\]/g
const quoted = (text: string) => `"${text.search(TO_ESCAPE) < 0 ? text : text.replace(TO_ESCAPE, '\\$&')}"`
