import { stringifyMessages } from './contract.js'
import { toCallError, type ErrorName } from './errors.js'
import type { Added, Clock, DeliverableMessage, Log, MessageStore, NewMessage, PubSub, SessionDirectory } from './ports.js'

/**
 * The live sessions whose sockets are on this instance: who owns what, and what each may still be sent.
 *
 * A session has two halves. The directory (shared) says that connection X is live on instance I, under an `epoch` that
 * grows with every session. This file holds the other half: the socket, and the window of what it was sent and has not
 * removed. What is in flight is marked in the store with the epoch, so ending a session in the directory frees it.
 *
 *   opening   add() subscribed to the connection's hints and asked the directory; nothing is delivered yet
 *   open      the directory answered and no newer session is known here; hints and removals make it deliver
 *   over      removed, displaced by a larger epoch, or its socket closed; what a late claim still brings is dropped,
 *             because its marks belong to an epoch that is no longer current
 *
 * What is delivered comes about in two ways. A message that is added on this very instance, to a session which was given all that came
 * before, is marked by its insert and sent from memory: no second statement reads and writes it. Everything else, what other instances
 * add above all, is claimed: a hint only says "look", and what is delivered, and that a session ended or was displaced on another
 * instance, is what the store answers to the claim that follows. So a forged or stale hint causes one read. The two take turns, for the
 * order's sake: while something is wanted from the store no add is offered to the session, and while one is no claim begins.
 *
 * A socket remembers the epoch of each session that it opened even when that one was displaced: its late remove names
 * that epoch to the directory, finds nothing, and changes nothing.
 */

// The window of one session: what may be un-acked before the rest waits in the store.
const WINDOW_MESSAGES = 256
const WINDOW_BYTES = 1024 * 1024
// How long what was sent counts against the window when leases are off.
const WINDOW_LEASE_MS = 30_000
// A socket that has this much unsent is not given more until it drains.
const MAX_BUFFERED_BYTES = 1024 * 1024
// With these an add has surely not claimed its message.
const NOTHING_DONE = new Set<ErrorName>(['overloaded', 'invalid_params'])
// Sessions ended by one statement, so that it stays far from the statement timeout.
const RELEASE_BATCH = 1_000
/** How long a session without a socket lasts unless renewed. */
const SOCKETLESS_TTL_MS = 60_000

/** One connected client. It knows nothing of queues. */
export interface Socket {
  readonly id: string
  readonly isOpen: boolean
  readonly bufferedBytes: number
  /** `onSent` is called when the text has left this process, or could not. */
  send(text: string, onSent?: () => void): void
}

interface Session {
  readonly connectionId: string
  readonly sessionId: string
  readonly epoch: number
  readonly socket: Socket
  readonly unsubscribe: () => Promise<void>
  /** Sent and not yet removed, oldest first. */
  readonly window: Map<string, { bytes: number; until: number }>
  windowBytes: number
  /** The last message that it was given; an insert looks from there on. */
  lastId: string | undefined
  /** Adds under way that may claim their message for it. They count against the window. */
  offers: number
  offeredBytes: number
  /** An offer or a claim failed, and perhaps only its answer was lost: what it marked was never sent. */
  isUnsure: boolean
  /** Claimed by adds, to be sent at the end of this turn of the event loop. */
  readonly unsent: DeliverableMessage[]
  /** Something may wait in the store that this session was not sent. */
  wanted: boolean
  /** It was tick() that found out. */
  isRescue: boolean
  delivering: boolean
}

export interface LiveSessionsOptions {
  store: MessageStore
  directory: SessionDirectory
  pubsub: PubSub
  log: Log
  now: Clock
  leaseMs: number
  /** Something was delivered, and not removed before its lease ran out. Called once for a message. */
  onOverdue?: (connectionId: string) => void
}

export type LiveSessions = ReturnType<typeof createLiveSessions>

export function createLiveSessions({ store, directory, pubsub, log, now, leaseMs, onOverdue }: LiveSessionsOptions) {
  const open = new Map<string, Session>()
  /** Per socket, the epoch of the last session that it opened for a connection, over or not. */
  const opened = new Map<Socket, Map<string, number>>()
  /** How many add() wait for the directory. */
  const opening = new Map<string, number>()
  /** Over here, but the directory could not be told yet. */
  const unreleased = new Map<number, string>()
  let releasing = false
  /** Messages that no hint had brought and that tick() found. */
  let rescued = 0
  /** Messages delivered once more: what is claimed again was in flight in this very session, and not removed in time. */
  let leasesExpired = 0
  let failures = 0
  let lastFailure: unknown

  return { add, remove, isLive, ownerOf, adding, socketClosed, removed, tick, closeAll, stats }

  /** [spec: addLiveSession] Subscribe first, so that nothing which arrives after the answer can be missed. */
  async function add(connectionId: string, sessionId: string, socket: Socket | undefined): Promise<boolean> {
    if (!socket) {
      const { former } = await directory.open({ connectionId, sessionId, ttlMs: SOCKETLESS_TTL_MS })
      displaceFormer(connectionId, former)
      return true
    }
    let arrived = false // while the directory was asked
    const unsubscribe = await pubsub.subscribe(connectionId, () => {
      arrived = true
      wake(connectionId)
    })
    opening.set(connectionId, (opening.get(connectionId) ?? 0) + 1)
    let answer
    try {
      answer = await directory.open({ connectionId, sessionId })
    } catch (error) {
      await unsubscribe()
      throw error
    } finally {
      const others = (opening.get(connectionId) ?? 1) - 1
      if (others > 0) opening.set(connectionId, others)
      else opening.delete(connectionId)
    }
    const { epoch, former } = answer
    const session: Session = {
      connectionId,
      sessionId,
      epoch,
      socket,
      unsubscribe,
      window: new Map(),
      windowBytes: 0,
      lastId: undefined,
      offers: 0,
      offeredBytes: 0,
      isUnsure: false,
      unsent: [],
      wanted: arrived,
      isRescue: false,
      delivering: false,
    }
    // The owner on another instance learns of it by looking, even when we do not stay.
    if (former?.instanceId && former.instanceId !== directory.instanceId) pubsub.publish(connectionId)
    if (!socket.isOpen) {
      await unsubscribe()
      release([session])
      return false
    }
    const mine = opened.get(socket) ?? new Map<string, number>()
    opened.set(socket, mine)
    mine.set(connectionId, Math.max(epoch, mine.get(connectionId) ?? 0))

    const rival = open.get(connectionId)
    if (rival && rival.epoch > epoch) {
      // Two sockets asked at the same time, and the other one's answer came first although it was recorded second.
      await unsubscribe()
      tellReplaced(session)
      return true
    }
    open.set(connectionId, session)
    if (rival) end(rival)
    if (rival && rival.socket !== socket) tellReplaced(rival)
    deliver(session)
    return true
  }

  /** [spec: removeLiveSession] from whatever socket it is asked; `false` where there is nothing (any more) to remove. */
  async function remove(connectionId: string, sessionId: string | undefined, socket: Socket | undefined): Promise<boolean> {
    const mine = socket && opened.get(socket)
    const epoch = mine?.get(connectionId)
    const closed = await directory.close({ connectionId, epoch, sessionId })
    if (!closed) return false
    const session = open.get(connectionId)
    if (session && session.epoch <= closed.epoch) {
      open.delete(connectionId)
      end(session)
    }
    if (mine?.get(connectionId) === closed.epoch) mine.delete(connectionId)
    if (closed.instanceId !== directory.instanceId) pubsub.publish(connectionId)
    return true
  }

  /**
   * Runs the add of a message. Then whoever holds the connection's live session is given it, or told to look for it; nobody waits for that.
   * @throws what `add` throws
   */
  async function adding(message: NewMessage, add: (message: NewMessage) => Promise<Added>): Promise<Added> {
    const session = open.get(message.connectionId)
    if (session && canBeOffered(session, message.payloadBytes)) return offering(session, message, add)
    const added = await add(message)
    announce(message.connectionId)
    return added
  }

  async function offering(session: Session, message: NewMessage, add: (message: NewMessage) => Promise<Added>): Promise<Added> {
    const { connectionId, payload, payloadBytes } = message
    const until = now() + (leaseMs || WINDOW_LEASE_MS)
    session.offers++
    session.offeredBytes += payloadBytes
    try {
      const added = await add({ ...message, claimFor: { epoch: session.epoch, after: session.lastId, leaseMs } })
      if (!added.claimed || !isOpen(session)) {
        announce(connectionId) // for a session that is newer than ours it is not in flight
      } else {
        enterWindow(session, added.id, payloadBytes, until)
        sendSoon(session, { id: added.id, receivedAt: added.claimed.receivedAt, encryptedMessage: payload, payloadBytes, deliveries: 1 })
      }
      return added
    } catch (error) {
      if (!NOTHING_DONE.has(toCallError(error).code)) {
        session.isUnsure = true
        announce(connectionId)
      }
      throw error
    } finally {
      session.offers--
      session.offeredBytes -= payloadBytes
      deliver(session)
    }
  }

  function canBeOffered(session: Session, bytes: number): boolean {
    const { wanted, delivering, window, windowBytes, offers, offeredBytes } = session
    if (wanted || delivering || !isOpen(session) || !hasRoom(session)) return false
    return windowBytes + offeredBytes + bytes <= WINDOW_BYTES || window.size + offers === 0 // a larger one goes alone
  }

  /** Many adds end in one turn of the event loop, when the store writes them together: they go in one frame. */
  function sendSoon(session: Session, message: DeliverableMessage): void {
    if (session.unsent.push(message) > 1) return
    process.nextTick(() => {
      const messages = session.unsent.splice(0)
      if (isOpen(session)) send(session, messages)
      else announce(session.connectionId) // for a new session they are not in flight
    })
  }

  /** A message was committed for the connection. */
  function announce(connectionId: string): void {
    // A session whose owner is here is served without the bus.
    if (open.has(connectionId)) wake(connectionId)
    else pubsub.publish(connectionId)
  }

  function isLive(connectionId: string): Promise<boolean> {
    return directory.isLive(connectionId)
  }

  /** The socket that holds the connection's live session, when it is on this instance. */
  function ownerOf(connectionId: string): Socket | undefined {
    return open.get(connectionId)?.socket
  }

  /** Ends all sessions of the socket at once and frees what was in flight in them. */
  function socketClosed(socket: Socket): void {
    const mine = opened.get(socket)
    if (!mine) return
    opened.delete(socket)
    const over: Session[] = []
    for (const connectionId of mine.keys()) {
      const session = open.get(connectionId)
      if (session?.socket !== socket) continue
      open.delete(connectionId)
      end(session)
      over.push(session)
    }
    release(over)
  }

  /** The messages were removed, by whatever caller: the window of the session has room again. */
  function removed(connectionId: string, ids: readonly string[]): void {
    const session = open.get(connectionId)
    if (!session) return
    for (const id of ids) leaveWindow(session, id)
    deliver(session)
  }

  /** Every few seconds: what no hint will bring. Leases that ran out, hints that were lost, releases that failed. */
  async function tick(): Promise<void> {
    for (const session of open.values()) {
      for (const [id, { until }] of session.window) {
        if (until > now()) break // in the order of sending, so the rest is younger
        leaveWindow(session, id)
      }
      deliver(session)
    }
    if (failures > 0) log.warn({ failures, err: lastFailure }, 'deliveries failed, the messages stay in the queue')
    failures = 0
    if (unreleased.size > 0) await releaseNow()
    const orphans = []
    for (const { connectionId, epoch } of await directory.waiting(leaseMs)) {
      const session = open.get(connectionId)
      if (session && session.epoch >= epoch) {
        if (!session.wanted) session.isRescue = true
        wake(connectionId)
      } else if (!opening.has(connectionId)) {
        orphans.push({ connectionId, epoch })
      }
    }
    // Recorded as ours, but nobody here has it: the answer to the directory's open was lost, and its client gave up.
    if (orphans.length > 0) await directory.closeMany(orphans)
  }

  /** For whoever watches the service. */
  function stats(): { sessions: number; rescued: number; leasesExpired: number } {
    return { sessions: open.size, rescued, leasesExpired }
  }

  /** Ends every session of this instance in one statement. The sockets stay; the caller closes them. */
  async function closeAll(): Promise<void> {
    for (const session of open.values()) end(session)
    open.clear()
    opened.clear()
    await directory.closeAll()
  }

  function wake(connectionId: string): void {
    const session = open.get(connectionId)
    if (!session) return
    session.wanted = true
    deliver(session)
  }

  function deliver(session: Session): void {
    if (session.delivering || !session.wanted || session.offers > 0) return
    session.delivering = true
    // Nothing is lost: `wanted` is still set, and the next hint, removal or tick tries again.
    deliverAll(session).catch((err: unknown) => {
      failures++
      lastFailure = err
    })
  }

  async function deliverAll(session: Session): Promise<void> {
    const { connectionId } = session
    try {
      while (session.wanted && isOpen(session) && hasRoom(session)) {
        const until = now() + (leaseMs || WINDOW_LEASE_MS)
        session.wanted = false // what arrives while the store is asked sets it again
        const { state, messages, more } = await claim(session)
        if (!isOpen(session)) return
        if (state !== 'current') {
          // On another instance, and we learn of it here; or here, and then add() goes on with it.
          if (!opening.has(connectionId)) over(session, state)
          pubsub.publish(connectionId)
          return
        }
        if (messages.length > 0) {
          for (const { id, payloadBytes } of messages) enterWindow(session, id, payloadBytes, until)
          if (session.isRescue) rescued += messages.length
          send(session, messages)
          leasesExpired += messages.filter(({ deliveries }) => deliveries > 1).length
          if (messages.some(({ deliveries }) => deliveries === 2)) onOverdue?.(connectionId)
        }
        session.isRescue = false
        if (more) session.wanted = true
        if (more && messages.length === 0) return // what is next does not fit until something is removed
      }
    } finally {
      session.delivering = false
    }
  }

  async function claim(session: Session) {
    const { connectionId, epoch, window, windowBytes, isUnsure } = session
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
      session.isUnsure = false // no offer is made while a claim is under way
      return claimed
    } catch (error) {
      session.wanted = true
      session.isUnsure = true
      throw error
    }
  }

  function send(session: Session, messages: readonly DeliverableMessage[]): void {
    session.lastId = messages.at(-1)?.id
    session.socket.send(messagesReceived(session.connectionId, messages), () => deliver(session))
  }

  function isOpen(session: Session): boolean {
    return open.get(session.connectionId) === session && session.socket.isOpen
  }

  function hasRoom({ window, windowBytes, offers, offeredBytes, socket }: Session): boolean {
    return window.size + offers < WINDOW_MESSAGES && windowBytes + offeredBytes < WINDOW_BYTES && socket.bufferedBytes < MAX_BUFFERED_BYTES
  }

  function enterWindow(session: Session, id: string, bytes: number, until: number): void {
    leaveWindow(session, id) // delivered again: its lease ran out a moment ago
    session.window.set(id, { bytes, until })
    session.windowBytes += bytes
  }

  function leaveWindow(session: Session, id: string): void {
    const entry = session.window.get(id)
    if (!entry) return
    session.window.delete(id)
    session.windowBytes -= entry.bytes
  }

  /** Over, whatever the reason. The directory is told by whoever knows why. */
  function end(session: Session): void {
    session.unsubscribe().catch((err: unknown) => log.warn({ err, connectionId: session.connectionId }, 'unsubscribe failed'))
  }

  function release(sessions: readonly Session[]): void {
    if (sessions.length === 0) return
    for (const { epoch, connectionId } of sessions) unreleased.set(epoch, connectionId)
    releaseNow().catch((err: unknown) => log.warn({ err, sessions: unreleased.size }, 'could not release live sessions, trying again'))
  }

  /** One statement at a time: thousands of sockets that close together would otherwise each send the sessions of all. */
  async function releaseNow(): Promise<void> {
    if (releasing) return
    releasing = true
    try {
      while (unreleased.size > 0) {
        const sessions = [...unreleased].slice(0, RELEASE_BATCH).map(([epoch, connectionId]) => ({ epoch, connectionId }))
        await directory.closeMany(sessions)
        for (const { epoch } of sessions) unreleased.delete(epoch)
      }
    } finally {
      releasing = false
    }
  }

  function tellReplaced({ connectionId, sessionId, socket }: Session): void {
    if (socket.isOpen) socket.send(liveSessionReplaced(connectionId, sessionId))
  }

  function displaceFormer(connectionId: string, former: { instanceId: string | undefined; epoch: number } | undefined): void {
    if (!former) return
    const session = open.get(connectionId)
    if (session?.epoch === former.epoch) over(session, 'replaced')
    else if (former.instanceId && former.instanceId !== directory.instanceId) pubsub.publish(connectionId)
  }

  function over(session: Session, why: 'replaced' | 'ended'): void {
    if (open.get(session.connectionId) === session) open.delete(session.connectionId)
    end(session)
    if (why === 'replaced') tellReplaced(session)
  }
}

/** [spec: messagesReceived] No top-level `id`; the empty one in `params` is what existing clients expect. */
function messagesReceived(connectionId: string, messages: Parameters<typeof stringifyMessages>[0]): string {
  return `{"jsonrpc":"2.0","method":"messagesReceived","params":{"connectionId":${JSON.stringify(connectionId)},"messages":${stringifyMessages(messages)},"id":""}}`
}

function liveSessionReplaced(connectionId: string, sessionId: string): string {
  return JSON.stringify({ jsonrpc: '2.0', method: 'liveSessionReplaced', params: { connectionId, sessionId } })
}
