import { CallError } from './errors.js'
import type { MessageStore } from './ports.js'

export interface Quota {
  /** Waiting messages per connection; 0 = no limit. */
  messages: number
  /** Bytes of payload waiting per connection; 0 = no limit. */
  bytes: number
}

// Counting costs as much as the queue is deep, so it is not done for each message. An exact count allows this share of
// what is free before the next one: with up to 16 instances adding to one connection at once the quota still holds.
const SHARE = 16
// What other instances added since is noticed after this time at the latest, and after half of it at the earliest: connections that were
// counted together, after a restart, are not counted again together.
const FRESH_MS = 60_000
const freshMs = () => FRESH_MS * (0.5 + Math.random() / 2)
const MAX_REMEMBERED = 100_000
// With no more than this waiting, a message is stored without a count before it. So few are looked at by the insert itself.
const FEW_MESSAGES = 32
// A quota that is not several times as much is always counted, and so is one that a single message takes a large part of.
const FEW_OF = 4

interface Room {
  messages: number
  bytes: number
}

interface Allowance extends Room {
  until: number
  /** There were few when it was looked at. */
  isFew: boolean
}

/** Adds that were called and have neither been stored nor failed. */
interface Pending {
  messages: number
  bytes: number
  last: Promise<unknown>
}

/**
 * Refuses a message that would make the queue of its connection larger than the quota. A refusal always follows an
 * exact count. What is stored is never evicted to make room.
 *
 * Most wallets are sent one message, and the next one after a long while. Such an add is not counted before, which would be a second
 * statement: it is stored if few wait, and tells so.
 */
export function createQuota(quota: Quota, store: Pick<MessageStore, 'depth'>, now: () => number) {
  const maxMessages = quota.messages || Infinity
  const maxBytes = quota.bytes || Infinity
  const allowances = new Map<string, Allowance>()
  const few = { messages: FEW_MESSAGES, bytes: Math.floor(Math.min(maxBytes, Number.MAX_SAFE_INTEGER) / FEW_OF) }
  /** Counts, exact ones, and first adds, which tell no more than that few wait. */
  const looks = new Map<string, Promise<Room | undefined>>()
  const pendings = new Map<string, Pending>()

  return { run }

  /**
   * Runs `add` if the connection has room for `bytes` more. `add` may be told to store only if not more than `ifAtMost` waits, and then
   * throws `quota_exceeded` otherwise; it is run again after a count.
   * @throws CallError `quota_exceeded`
   */
  async function run<T>(connectionId: string, bytes: number, add: (ifAtMost?: Room) => Promise<T>): Promise<T> {
    if (maxMessages === Infinity && maxBytes === Infinity) return add()
    // While somebody looks nobody overtakes the one who waits for it: the adds of a connection keep their order.
    while (looks.has(connectionId) || !spend(connectionId, bytes)) {
      const pending = pendings.get(connectionId)
      if (!pending && mayBeFew(connectionId, bytes)) {
        const first = await addToFew(connectionId, bytes, add)
        if (first) return first.added
      }
      const free = await (looks.get(connectionId) ?? count(connectionId, bytes))
      if (!free) continue
      const full = free.messages < 1 ? refuse('messages', maxMessages) : free.bytes < bytes ? refuse('bytes', maxBytes) : undefined
      if (!full) continue
      if (!pending) throw full
      await pending.last.catch(() => {}) // it may have been counted twice, or may yet fail and leave room
    }
    const pending = pendings.get(connectionId) ?? { messages: 0, bytes: 0, last: Promise.resolve() }
    pendings.set(connectionId, pending)
    pending.messages++
    pending.bytes += bytes
    const added = add()
    pending.last = added
    try {
      return await added
    } finally {
      pending.messages--
      pending.bytes -= bytes
      if (pending.messages === 0) pendings.delete(connectionId)
    }
  }

  function spend(connectionId: string, bytes: number): boolean {
    const allowance = allowances.get(connectionId)
    if (!allowance || allowance.until < now() || allowance.messages < 1 || allowance.bytes < bytes) return false
    allowance.messages--
    allowance.bytes -= bytes
    return true
  }

  function mayBeFew(connectionId: string, bytes: number): boolean {
    if (looks.has(connectionId) || maxMessages < FEW_OF * few.messages || bytes > few.bytes) return false
    return allowances.get(connectionId)?.isFew ?? true
  }

  /** @returns undefined when more than a few wait, and it was not added */
  async function addToFew<T>(connectionId: string, bytes: number, add: (ifAtMost: Room) => Promise<T>): Promise<{ added: T } | undefined> {
    const adding = add(few)
    const room = { messages: maxMessages - few.messages - 1, bytes: maxBytes - few.bytes - bytes }
    // In one step, so that this call goes on before those that wait for it.
    const looked = adding.then(
      () => {
        allow(connectionId, room, bytes, true)
        return void looks.delete(connectionId)
      },
      () => void looks.delete(connectionId),
    )
    looks.set(connectionId, looked)
    try {
      return { added: await adding }
    } catch (error) {
      if (error instanceof CallError && error.code === 'quota_exceeded') return undefined
      throw error
    }
  }

  /** What is free, exactly. Callers that ask while a count runs share it. */
  function count(connectionId: string, bytes: number): Promise<Room> {
    const counted = countNow(connectionId, bytes).finally(() => looks.delete(connectionId))
    looks.set(connectionId, counted)
    return counted
  }

  async function countNow(connectionId: string, bytes: number): Promise<Room> {
    const pending = { messages: 0, bytes: 0, ...pendings.get(connectionId) }
    const stored = await store.depth(connectionId)
    const free = { messages: maxMessages - stored.messages - pending.messages, bytes: maxBytes - stored.bytes - pending.bytes }
    allow(connectionId, free, bytes, stored.messages <= few.messages && stored.bytes <= few.bytes)
    return free
  }

  function allow(connectionId: string, free: Room, bytes: number, isFew: boolean): void {
    if (allowances.size >= MAX_REMEMBERED) allowances.clear()
    allowances.set(connectionId, {
      messages: free.messages < 1 ? 0 : Math.max(1, Math.floor(free.messages / SHARE)),
      bytes: Math.max(free.bytes / SHARE, Math.min(bytes, free.bytes)),
      until: now() + freshMs(),
      isFew,
    })
  }

  function refuse(what: 'messages' | 'bytes', limit: number): CallError {
    const setting = what === 'messages' ? 'QUOTA_MESSAGES' : 'QUOTA_BYTES'
    return new CallError('quota_exceeded', `The queue of this connection is full (${setting}: ${limit} ${what}). Nothing was stored.`, {
      field: 'connectionId',
      limit,
    })
  }
}
