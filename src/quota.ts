import { CallError } from './errors.js'
import type { MessageStore } from './ports.js'
import { promised, type Told } from './told.js'

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

/** That a queue is full, or was fuller than an add allowed for. */
export const isQuotaExceeded = (error: unknown): boolean => error instanceof CallError && error.code === 'quota_exceeded'

interface Room {
  messages: number
  bytes: number
}

/** Of one connection. One flat object and not a map for each fact: it is looked up for every message, and there may be very many. */
interface Known {
  /** May be added before the next count. */
  messages: number
  bytes: number
  until: number
  /** There were few when it was looked at; undefined when it was not. */
  isFew: boolean | undefined
  /** Adds that took their room, how many of them have been stored or failed, and the bytes of those that have not. Not a first add: it is a look. */
  begun: number
  ended: number
  pendingBytes: number
  /** Who waits until so many have ended. */
  waiting: { until: number; resolve: () => void }[] | undefined
  /** A count, or a first add, which counts only when more than a few wait. */
  look: Promise<Room | undefined> | undefined
  /** Calls that look, or wait for one that does, and hold this object. */
  users: number
}

type Add<T> = (ifAtMost: Room | undefined, told: Told<T>) => void

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
  const few = { messages: FEW_MESSAGES, bytes: Math.floor(Math.min(maxBytes, Number.MAX_SAFE_INTEGER) / FEW_OF) }
  const connections = new Map<string, Known>()

  return { run }

  /**
   * Runs `add` if the connection has room for `bytes` more, and tells how it ended: stored, or failed with whatever it failed with, or
   * `quota_exceeded`. `add` may be told to store only if not more than `ifAtMost` waits, and then fails with `quota_exceeded` otherwise; it is
   * run again after a count.
   */
  function run<T>(connectionId: string, bytes: number, add: Add<T>, told: Told<T>): void {
    if (maxMessages === Infinity && maxBytes === Infinity) return add(undefined, told)
    const known = knownOf(connectionId)
    // Mostly there is room, and no need for a promise on the path of every message. docs/decisions/0008
    if (!known.look && spend(known, bytes)) addPending(known, bytes, add, told)
    else lookAndAdd(connectionId, known, bytes, add).then(told, told)
  }

  async function lookAndAdd<T>(connectionId: string, known: Known, bytes: number, add: Add<T>): Promise<T> {
    known.users++
    try {
      // While somebody looks nobody overtakes the one who waits for it: the adds of a connection keep their order.
      while (known.look || !spend(known, bytes)) {
        const { look, begun, ended } = known
        const first = look || begun > ended || !mayBeFew(known, bytes) ? undefined : addToFew(connectionId, known, bytes, add)
        const free = await (known.look ?? count(connectionId, known, bytes))
        if (!free) {
          if (first) return await first
          continue
        }
        const full = free.messages < 1 ? refuse('messages', maxMessages) : free.bytes < bytes ? refuse('bytes', maxBytes) : undefined
        if (!full) continue
        if (begun === ended) throw full
        await allEnded(known, begun) // they may have been counted twice, or may yet fail and leave room
      }
      return await promised<T>((told) => addPending(known, bytes, add, told))
    } finally {
      known.users--
    }
  }

  function knownOf(connectionId: string): Known {
    let known = connections.get(connectionId)
    if (!known) {
      if (connections.size >= MAX_REMEMBERED) forget()
      known = {
        messages: 0,
        bytes: 0,
        until: 0,
        isFew: undefined,
        begun: 0,
        ended: 0,
        pendingBytes: 0,
        waiting: undefined,
        look: undefined,
        users: 0,
      }
      connections.set(connectionId, known)
    }
    return known
  }

  function forget(): void {
    for (const [connectionId, { users, begun, ended }] of connections) if (users === 0 && begun === ended) connections.delete(connectionId)
  }

  function addPending<T>(known: Known, bytes: number, add: Add<T>, told: Told<T>): void {
    known.begun++
    known.pendingBytes += bytes
    add(undefined, (result) => {
      known.ended++
      known.pendingBytes -= bytes
      if (known.waiting) wake(known, known.waiting)
      told(result)
    })
  }

  function allEnded(known: Known, until: number): Promise<void> | undefined {
    if (known.ended >= until) return undefined
    return new Promise((resolve) => (known.waiting ??= []).push({ until, resolve }))
  }

  function wake(known: Known, waiting: NonNullable<Known['waiting']>): void {
    const rest = waiting.filter(({ until, resolve }) => known.ended < until || resolve())
    known.waiting = rest.length > 0 ? rest : undefined
  }

  function spend(known: Known, bytes: number): boolean {
    if (known.until < now() || known.messages < 1 || known.bytes < bytes) return false
    known.messages--
    known.bytes -= bytes
    return true
  }

  function mayBeFew({ isFew = true }: Known, bytes: number): boolean {
    return isFew && maxMessages >= FEW_OF * few.messages && bytes <= few.bytes
  }

  /**
   * Whoever comes meanwhile waits for what it brings: nothing to say (undefined) when it was stored or failed, and a count when it was not
   * stored because more than a few wait. That count is part of the look: whoever came after would otherwise look first, and find the same.
   */
  function addToFew<T>(connectionId: string, known: Known, bytes: number, add: Add<T>): Promise<T> {
    const adding = promised<T>((told) => add(few, told))
    known.look = adding
      .then(
        () => {
          allow(known, { messages: maxMessages - few.messages - 1, bytes: maxBytes - few.bytes - bytes }, bytes, true)
          return undefined
        },
        (error) => (isQuotaExceeded(error) ? countNow(connectionId, known, bytes) : undefined),
      )
      .finally(() => (known.look = undefined))
    return adding
  }

  /** What is free, exactly. Callers that ask while a count runs share it. */
  function count(connectionId: string, known: Known, bytes: number): Promise<Room> {
    const counted = countNow(connectionId, known, bytes).finally(() => (known.look = undefined))
    known.look = counted
    return counted
  }

  async function countNow(connectionId: string, known: Known, bytes: number): Promise<Room> {
    const { pendingBytes } = known // as it is when it begins
    const pendingMessages = known.begun - known.ended
    const stored = await store.depth(connectionId)
    const free = { messages: maxMessages - stored.messages - pendingMessages, bytes: maxBytes - stored.bytes - pendingBytes }
    allow(known, free, bytes, stored.messages <= few.messages && stored.bytes <= few.bytes)
    return free
  }

  function allow(known: Known, free: Room, bytes: number, isFew: boolean): void {
    known.messages = free.messages < 1 ? 0 : Math.max(1, Math.floor(free.messages / SHARE))
    known.bytes = Math.max(free.bytes / SHARE, Math.min(bytes, free.bytes))
    known.until = now() + freshMs()
    known.isFew = isFew
  }

  function refuse(what: 'messages' | 'bytes', limit: number): CallError {
    const setting = what === 'messages' ? 'QUOTA_MESSAGES' : 'QUOTA_BYTES'
    return new CallError('quota_exceeded', `The queue of this connection is full (${setting}: ${limit} ${what}). Nothing was stored.`, {
      field: 'connectionId',
      limit,
    })
  }
}
