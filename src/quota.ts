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

interface Allowance {
  messages: number
  bytes: number
  until: number
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
 */
export function createQuota(quota: Quota, store: Pick<MessageStore, 'depth'>, now: () => number) {
  const maxMessages = quota.messages || Infinity
  const maxBytes = quota.bytes || Infinity
  const allowances = new Map<string, Allowance>()
  const counts = new Map<string, Promise<{ messages: number; bytes: number }>>()
  const pendings = new Map<string, Pending>()

  return { run }

  /**
   * Runs `add` if the connection has room for `bytes` more.
   * @throws CallError `quota_exceeded`
   */
  async function run<T>(connectionId: string, bytes: number, add: () => Promise<T>): Promise<T> {
    if (maxMessages === Infinity && maxBytes === Infinity) return add()
    // While a count runs nobody overtakes the one who waits for it: the adds of a connection keep their order.
    while (counts.has(connectionId) || !spend(connectionId, bytes)) {
      const pending = pendings.get(connectionId)
      const free = await count(connectionId, bytes)
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

  /** What is free, exactly. Callers that ask while a count runs share it. */
  function count(connectionId: string, bytes: number): Promise<{ messages: number; bytes: number }> {
    const running = counts.get(connectionId)
    if (running) return running
    const counted = countNow(connectionId, bytes).finally(() => counts.delete(connectionId))
    counts.set(connectionId, counted)
    return counted
  }

  async function countNow(connectionId: string, bytes: number): Promise<{ messages: number; bytes: number }> {
    const pending = { messages: 0, bytes: 0, ...pendings.get(connectionId) }
    const stored = await store.depth(connectionId)
    const free = { messages: maxMessages - stored.messages - pending.messages, bytes: maxBytes - stored.bytes - pending.bytes }
    if (allowances.size >= MAX_REMEMBERED) allowances.clear()
    allowances.set(connectionId, {
      messages: free.messages < 1 ? 0 : Math.max(1, Math.floor(free.messages / SHARE)),
      bytes: Math.max(free.bytes / SHARE, Math.min(bytes, free.bytes)),
      until: now() + freshMs(),
    })
    return free
  }

  function refuse(what: 'messages' | 'bytes', limit: number): CallError {
    const setting = what === 'messages' ? 'QUOTA_MESSAGES' : 'QUOTA_BYTES'
    return new CallError('quota_exceeded', `The queue of this connection is full (${setting}: ${limit} ${what}). Nothing was stored.`, {
      field: 'connectionId',
      limit,
    })
  }
}
