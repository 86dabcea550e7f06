import { createDelivery, newRecipient, type Recipient, type Socket } from './delivery.js'
import { createLookingAgain } from './looking-again.js'
import type { Added, Clock, Log, MessageStore, NewMessage, PubSub, SessionDirectory } from './ports.js'
import type { Told } from './told.js'

/**
 * The live sessions whose sockets are on this instance: who owns what. What each is sent is the affair of delivery.ts.
 *
 * A session has two halves. The directory (shared) says that connection X is live on instance I, under an `epoch` that
 * grows with every session. This file holds the other half: the socket, and the window of what it was sent and has not
 * removed. What is in flight is marked in the store with the epoch, so ending a session in the directory frees it.
 *
 *   opening   add() subscribed to the connection's hints and asked the directory; nothing is delivered yet
 *   open      the directory answered and no newer session is known here; hints, removals and its looking again make it
 *             deliver
 *   over      removed, displaced by a larger epoch, or its socket closed; what a late claim still brings is dropped,
 *             because its marks belong to an epoch that is no longer current
 *
 * A socket remembers the epoch of each session that it opened even when that one was displaced: its late remove names
 * that epoch to the directory, finds nothing, and changes nothing.
 */

// Sessions ended by one statement, so that it stays far from the statement timeout.
const RELEASE_BATCH = 1_000
/** How long a session without a socket lasts unless renewed. */
const SOCKETLESS_TTL_MS = 60_000

interface Session extends Recipient {
  readonly sessionId: string
  readonly unsubscribe: () => Promise<void>
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
  const delivery = createDelivery({
    ...{ store, now, leaseMs, onOverdue, announce },
    isOpen,
    onOver({ connectionId }, why) {
      // On another instance, and we learn of it here; or here, and then add() goes on with it.
      const session = open.get(connectionId)
      if (session && !opening.has(connectionId)) over(session, why)
      pubsub.publish(connectionId)
    },
  })
  const { deliver } = delivery
  const lookAgain = createLookingAgain({ ...{ directory, log, now, leaseMs, isOpen }, found: wake })

  return { add, remove, isLive, ownerOf, adding, added, socketClosed, removed, isBehind, tick, closeAll, stats }

  function isOpen(recipient: Recipient): boolean {
    return open.get(recipient.connectionId) === recipient && recipient.socket.isOpen
  }

  /**
   * [spec: addLiveSession] Subscribe first, so that no hint is missed that is published after the answer. What is published by nobody, because it
   * was being written meanwhile, is looked for.
   */
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
    const session: Session = Object.assign(newRecipient({ connectionId, epoch, socket, wanted: arrived }), { sessionId, unsubscribe })
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
    lookAgain(session)
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
   * Runs the add of a message, whose session is given it at once when that is here and may be, and tells what `add` told. Once it is stored,
   * `added` has to be called.
   */
  function adding(message: NewMessage, add: MessageStore['add'], told: Told<Added>): void {
    const session = open.get(message.connectionId)
    if (session && delivery.canBeOffered(session, message.payloadBytes)) delivery.offering(session, message, add).then(told, told)
    else add(message, told)
  }

  /** A message was stored: whoever holds the connection's live session, and was not given it at once, is told to look for it. */
  function added(connectionId: string, { claimed, nobodyElseIsLive }: Added): void {
    if (claimed) return
    // One that was opened meanwhile looks again by itself (looking-again.ts); here it need not wait for that.
    if (!nobodyElseIsLive || open.has(connectionId) || opening.has(connectionId)) announce(connectionId)
  }

  /** Whoever holds the connection's session, here or elsewhere, should look for mail. */
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
    if (session) delivery.removed(session, ids)
  }

  /** Whether something could not be delivered since the last tick, which tries again. */
  function isBehind(): boolean {
    return delivery.hasFailed()
  }

  /** Every few seconds: what no hint will bring. Leases that ran out, hints that were lost, releases that failed. */
  async function tick(): Promise<void> {
    for (const session of open.values()) delivery.expire(session)
    const failed = delivery.takeFailures()
    if (failed.failures > 0) log.warn(failed, 'deliveries failed, the messages stay in the queue')
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
    return { sessions: open.size, ...delivery.counts() }
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

function liveSessionReplaced(connectionId: string, sessionId: string): string {
  return JSON.stringify({ jsonrpc: '2.0', method: 'liveSessionReplaced', params: { connectionId, sessionId } })
}
