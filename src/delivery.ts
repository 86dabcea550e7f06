import { stringifyMessages } from './contract.js'
import { toCallError, type ErrorName } from './errors.js'
import type { JsonText } from './json.js'
import type { Added, Clock, DeliverableMessage, MessageStore, NewMessage } from './ports.js'
import { promised } from './told.js'

/**
 * What an open session is sent, and what it may be: the window of what it was sent and has not removed.
 *
 * What is delivered comes about in two ways. A message that is added on this very instance, to a session which was given all that came
 * before, is marked by its insert and sent from memory: no second statement reads and writes it. Everything else, what other instances
 * add above all, is claimed: a hint only says "look", and what is delivered, and that a session ended or was displaced on another
 * instance, is what the store answers to the claim that follows. So a forged or stale hint causes one read. The two take turns, for the
 * order's sake: while something is wanted from the store no add is offered to the session, and while one is no claim begins.
 */

// The window of one session: what may be un-acked before the rest waits in the store.
const WINDOW_MESSAGES = 256
const WINDOW_BYTES = 1024 * 1024
// How long what was sent counts against the window when leases are off.
const WINDOW_LEASE_MS = 30_000
// A socket that has this much unsent is not given more until it drains.
const MAX_BUFFERED_BYTES = 1024 * 1024
// With these an add has surely not claimed its message.
const NOTHING_DONE = new Set<ErrorName>(['overloaded', 'invalid_params', 'quota_exceeded'])

/** One connected client. It knows nothing of queues. */
export interface Socket {
  readonly id: string
  readonly isOpen: boolean
  readonly bufferedBytes: number
  /** `onSent` is called when the text has left this process, or could not. */
  send(text: string, onSent?: () => void): void
}

/** Whom mail is delivered to: a session, as far as this file is concerned. */
export interface Recipient {
  readonly connectionId: string
  readonly epoch: number
  readonly socket: Socket
  /** Sent and not yet removed, oldest first. */
  readonly window: Map<string, { bytes: number; until: number }>
  windowBytes: number
  /** The last message that it was given; an insert looks from there on, once the session is settled. */
  lastId: string | undefined
  /** Nothing that was being written while it was opened can turn up any more, before what it was given (looking-again.ts). */
  isSettled: boolean
  /** Adds under way that may claim their message for it. They count against the window. */
  offers: number
  offeredBytes: number
  /** An offer or a claim failed, and perhaps only its answer was lost: what it marked was never sent. */
  isUnsure: boolean
  /** Claimed by adds, to be sent at the end of this turn of the event loop. */
  readonly unsent: DeliverableMessage[]
  /** Something may wait in the store that it was not sent. */
  wanted: boolean
  /** It was the reconciler that found out. */
  isRescue: boolean
  delivering: boolean
}

/** Nothing was sent yet. Not by spreading: V8 would make a hidden class for each recipient. */
export function newRecipient({
  connectionId,
  epoch,
  socket,
  wanted,
}: Pick<Recipient, 'connectionId' | 'epoch' | 'socket' | 'wanted'>): Recipient {
  return {
    connectionId,
    epoch,
    socket,
    wanted,
    window: new Map(),
    windowBytes: 0,
    lastId: undefined,
    isSettled: false,
    offers: 0,
    offeredBytes: 0,
    isUnsure: false,
    unsent: [],
    isRescue: false,
    delivering: false,
  }
}

export interface DeliveryOptions {
  store: MessageStore
  now: Clock
  leaseMs: number
  /** Whether it still owns its connection's mail on this instance, and its socket is open. */
  isOpen(recipient: Recipient): boolean
  /** Its session is over, as the store knows: another one took its place, or there is none any more. */
  onOver(recipient: Recipient, why: 'replaced' | 'ended'): void
  /** Whoever holds the connection's session, here or elsewhere, should look for mail. */
  announce(connectionId: string): void
  /** Something was delivered, and not removed before its lease ran out. Called once for a message. */
  onOverdue?: (connectionId: string) => void
}

export type Delivery = ReturnType<typeof createDelivery>

export function createDelivery({ store, now, leaseMs, isOpen, onOver, announce, onOverdue }: DeliveryOptions) {
  /** Messages that no hint had brought and that the reconciler found. */
  let rescued = 0
  /** Messages delivered once more: what is claimed again was in flight in this very session, and not removed in time. */
  let leasesExpired = 0
  let failures = 0
  let lastFailure: unknown

  return { canBeOffered, offering, deliver, removed, expire, counts, hasFailed, takeFailures }

  /** Whether an add of so many bytes may claim its message for it. */
  function canBeOffered(recipient: Recipient, bytes: number): boolean {
    const { wanted, delivering, window, windowBytes, offers, offeredBytes } = recipient
    if (wanted || delivering || !isOpen(recipient) || !hasRoom(recipient)) return false
    return windowBytes + offeredBytes + bytes <= WINDOW_BYTES || window.size + offers === 0 // a larger one goes alone
  }

  /** Runs the add of a message that can be offered, and sends the message when its insert could claim it. @throws what `add` tells */
  async function offering(recipient: Recipient, message: NewMessage, add: MessageStore['add']): Promise<Added> {
    const { connectionId, payload, payloadBytes } = message
    const until = now() + (leaseMs || WINDOW_LEASE_MS)
    recipient.offers++
    recipient.offeredBytes += payloadBytes
    try {
      // Set and not spread, for the hidden class (pickup.ts): the message is that of this add alone.
      message.claimFor = { epoch: recipient.epoch, after: recipient.isSettled ? recipient.lastId : undefined, leaseMs }
      const added = await promised<Added>((told) => add(message, told))
      if (!added.claimed) return added // whoever runs the add announces it
      if (!isOpen(recipient)) {
        announce(connectionId) // for a session that is newer than ours it is not in flight
      } else {
        enterWindow(recipient, added.id, payloadBytes, until)
        sendSoon(recipient, {
          id: added.id,
          receivedAt: added.claimed.receivedAt,
          encryptedMessage: payload.toString() as JsonText,
          payloadBytes,
          deliveries: 1,
        })
      }
      return added
    } catch (error) {
      if (!NOTHING_DONE.has(toCallError(error).code)) {
        recipient.isUnsure = true
        announce(connectionId)
      }
      throw error
    } finally {
      recipient.offers--
      recipient.offeredBytes -= payloadBytes
      deliver(recipient)
    }
  }

  /** Many adds end in one turn of the event loop, when the store writes them together: they go in one frame. */
  function sendSoon(recipient: Recipient, message: DeliverableMessage): void {
    if (recipient.unsent.push(message) > 1) return
    process.nextTick(() => {
      const messages = recipient.unsent.splice(0)
      if (isOpen(recipient)) send(recipient, messages)
      else announce(recipient.connectionId) // for a new session they are not in flight
    })
  }

  /** Sends what is wanted from the store, as far as there is room. */
  function deliver(recipient: Recipient): void {
    if (recipient.delivering || !recipient.wanted || recipient.offers > 0) return
    recipient.delivering = true
    // Nothing is lost: `wanted` is still set, and the next hint, removal or tick tries again.
    deliverAll(recipient).catch((err: unknown) => {
      failures++
      lastFailure = err
    })
  }

  async function deliverAll(recipient: Recipient): Promise<void> {
    try {
      while (recipient.wanted && isOpen(recipient) && hasRoom(recipient)) {
        const until = now() + (leaseMs || WINDOW_LEASE_MS)
        recipient.wanted = false // what arrives while the store is asked sets it again
        const { state, messages, more } = await claim(recipient)
        if (!isOpen(recipient)) return
        if (state !== 'current') return onOver(recipient, state)
        if (messages.length > 0) {
          for (const { id, payloadBytes } of messages) enterWindow(recipient, id, payloadBytes, until)
          if (recipient.isRescue) rescued += messages.length
          send(recipient, messages)
          leasesExpired += messages.filter(({ deliveries }) => deliveries > 1).length
          if (messages.some(({ deliveries }) => deliveries === 2)) onOverdue?.(recipient.connectionId)
        }
        recipient.isRescue = false
        if (more) recipient.wanted = true
        if (more && messages.length === 0) return // what is next does not fit until something is removed
      }
    } finally {
      recipient.delivering = false
    }
  }

  async function claim(recipient: Recipient) {
    const { connectionId, epoch, window, windowBytes, isUnsure } = recipient
    try {
      const claimed = await store.claim({
        connectionId,
        epoch,
        limit: WINDOW_MESSAGES - window.size,
        limitBytes: WINDOW_BYTES - windowBytes,
        alone: window.size === 0,
        leaseMs,
        sent: isUnsure ? [...window.keys()] : undefined,
      })
      recipient.isUnsure = false // no offer is made while a claim is under way
      return claimed
    } catch (error) {
      recipient.wanted = true
      recipient.isUnsure = true
      throw error
    }
  }

  function send(recipient: Recipient, messages: readonly DeliverableMessage[]): void {
    recipient.lastId = messages.at(-1)?.id
    recipient.socket.send(messagesReceived(recipient.connectionId, messages), () => deliver(recipient))
  }

  /** They were removed, by whatever caller: the window has room again. */
  function removed(recipient: Recipient, ids: readonly string[]): void {
    for (const id of ids) leaveWindow(recipient, id)
    deliver(recipient)
  }

  /** What was sent so long ago that its lease ran out counts no more. */
  function expire(recipient: Recipient): void {
    for (const [id, { until }] of recipient.window) {
      if (until > now()) break // in the order of sending, so the rest is younger
      leaveWindow(recipient, id)
    }
    deliver(recipient)
  }

  /** For whoever watches the service. */
  function counts(): { rescued: number; leasesExpired: number } {
    return { rescued, leasesExpired }
  }

  /** Whether a delivery failed since `takeFailures` was asked last. */
  function hasFailed(): boolean {
    return failures > 0
  }

  /** Deliveries that failed since this was asked last. */
  function takeFailures(): { failures: number; err: unknown } {
    const taken = { failures, err: lastFailure }
    failures = 0
    return taken
  }
}

function hasRoom({ window, windowBytes, offers, offeredBytes, socket }: Recipient): boolean {
  return window.size + offers < WINDOW_MESSAGES && windowBytes + offeredBytes < WINDOW_BYTES && socket.bufferedBytes < MAX_BUFFERED_BYTES
}

function enterWindow(recipient: Recipient, id: string, bytes: number, until: number): void {
  leaveWindow(recipient, id) // delivered again: its lease ran out a moment ago
  recipient.window.set(id, { bytes, until })
  recipient.windowBytes += bytes
}

function leaveWindow(recipient: Recipient, id: string): void {
  const entry = recipient.window.get(id)
  if (!entry) return
  recipient.window.delete(id)
  recipient.windowBytes -= entry.bytes
}

/** [spec: messagesReceived] No top-level `id`; the empty one in `params` is what existing clients expect. */
function messagesReceived(connectionId: string, messages: Parameters<typeof stringifyMessages>[0]): string {
  return `{"jsonrpc":"2.0","method":"messagesReceived","params":{"connectionId":${JSON.stringify(connectionId)},"messages":${stringifyMessages(messages)},"id":""}}`
}
