import type { Socket } from './delivery.js'
import type { Clock, DuePush, Log, PushOutbox, PushOutcome, PushSender, PushSettlement, PushToken } from './ports.js'

/**
 * Wakes sleeping phones. What is owed stands in the outbox, written with the message; here it is claimed, sent and settled,
 * by every instance alike.
 *
 *   claimed    until it is settled, or until the claim runs out because this instance died
 *   settled    sent | over (rejected, given up) | again later (failed, or its project is paused) | dead (the token is)
 *
 * A project that fails for everybody is paused as a whole; after the pause one push tries whether it is over, so that an outage
 * costs an attempt per pause and not one per phone.
 */

/** Pushes that may be on their way at once. */
const MAX_SENDING = 64
/** Failures of a project in a row after which it is paused, for longer each time. */
const MAX_FAILURES = 5
const MAX_RETRY_MS = 600_000
/** How often a settlement is written that fails. */
const SETTLE_TRIES = 3
/** Givers of tokens that are remembered, to tell them when one is dead. */
const MAX_GIVERS = 10_000
/** Different reasons to ignore a token, each logged once. */
const MAX_REFUSALS = 20

export interface PushOptions {
  outbox: PushOutbox
  sender: PushSender
  /** The socket that holds the live session of the connection on this instance. */
  ownerOf(connectionId: string): Socket | undefined
  log: Log
  now: Clock
  /** Milliseconds after a first failure; doubles with each. */
  retryMs: number
  giveUpMs: number
  random?: () => number
}

export type Push = ReturnType<typeof createPush>

interface Project {
  /** In a row, of pushes that left after the last pause began: those that were on their way say nothing new. */
  failures: number
  pausedAt: number
  pausedUntil: number
  /** One push is on its way to find out whether the project takes them again. */
  isProbing: boolean
}

export function createPush({ outbox, sender, ownerOf, log, now, retryMs, giveUpMs, random = Math.random }: PushOptions) {
  /** Who last gave a token with a message: the one to be told when it is dead. */
  const givers = new Map<string, WeakRef<Socket>>()
  const projects = new Map<string, Project>()
  const refusals = new Set<string>()
  /** For whoever watches the service, by the names that it shows. */
  const counts = { accepted: 0, dead: 0, rejected: 0, failed: 0, gave_up: 0, cancelled: 0 }
  let sending = 0
  let looking: Promise<void> | undefined
  let lookAgain = false
  let isDown = false
  let stopped = false
  let onIdle: (() => void) | undefined

  return { look, usable, added, remind, refuses, sendPushNotification, stop, counts: () => ({ ...counts }) }

  /** Looks for pushes that are due, and for more as long as there are any. Callers that come while it looks are one. */
  function look(): void {
    if (stopped) return
    if (looking) return void (lookAgain = true)
    lookAgain = false
    looking = claimAll()
      .then(
        () => {
          if (isDown) log.info({}, 'the push outbox answers again')
          isDown = false
        },
        (err: unknown) => {
          if (!isDown) log.warn({ err }, 'the push outbox does not answer, pushes are late')
          isDown = true
        },
      )
      .finally(() => {
        looking = undefined
        if (lookAgain) look()
      })
  }

  async function claimAll(): Promise<void> {
    // While nobody takes pushes they stay where they are: claiming each only to put it off would cost as much as sending it.
    const isPaused = () => sender.projects.every((project) => projectOf({ project }).pausedUntil > now())
    while (!stopped && sending < MAX_SENDING && !isPaused()) {
      const { due, cancelled } = await outbox.claim(MAX_SENDING - sending)
      counts.cancelled += cancelled
      for (const push of due) {
        sending++
        void handle(push).finally(() => {
          sending--
          if (sending === 0) onIdle?.()
          look()
        })
      }
      if (due.length + cancelled === 0) return
    }
  }

  function refuses(token: PushToken): string | undefined {
    return sender.refuses(token)
  }

  /** A message with a token that nobody here can send to is stored like any other: the mail counts more than the push. */
  function usable(token: PushToken | undefined): PushToken | undefined {
    const refusal = token && refuses(token)
    if (refusal === undefined) return token
    if (!refusals.has(refusal) && refusals.size < MAX_REFUSALS) {
      refusals.add(refusal)
      log.warn({ reason: refusal }, 'push tokens that come with messages are ignored')
    }
    return undefined
  }

  /** A message was added, and this is what came of its push. */
  function added(
    connectionId: string,
    socket: Socket | undefined,
    token: PushToken | undefined,
    outcome: 'owed' | 'token is dead' | undefined,
  ): void {
    if (socket && token) {
      givers.delete(connectionId) // so that it is the newest
      givers.set(connectionId, new WeakRef(socket))
      if (givers.size > MAX_GIVERS) givers.delete(givers.keys().next().value!)
    }
    if (outcome === 'owed') look()
    if (outcome === 'token is dead' && socket?.isOpen) socket.send(pushTokenInvalid(connectionId, token!.token))
  }

  /** What was delivered to the connection comes back un-acked for the first time. Not waited for: it is owed again at the session's end. */
  function remind(connectionId: string): void {
    outbox.remind(connectionId).then(look, (err: unknown) => log.warn({ err, connectionId }, 'could not owe a push'))
  }

  async function handle(push: DuePush): Promise<void> {
    const project = projectOf(push.token)
    const waitMs = Math.max(project.pausedUntil - now(), project.isProbing ? retryMs : 0)
    try {
      if (waitMs > 0) {
        if (push.ageMs >= giveUpMs) await giveUp(push, 'its project does not take pushes')
        else await settle(push, { as: 'again', afterMs: jitter(waitMs), failed: false })
        return
      }
      const isProbe = project.failures >= MAX_FAILURES
      if (isProbe) project.isProbing = true
      const startedAt = now()
      try {
        const outcome = await sendPushNotification(push.token, push.connectionId)
        if (outcome.kind !== 'failed') project.failures = 0
        else if (outcome.everybody && startedAt >= project.pausedAt) pause(project, outcome.retryAfterMs)
        await conclude(push, outcome)
      } finally {
        if (isProbe) project.isProbing = false
      }
    } catch (err) {
      // The claim runs out, and it is sent again then.
      log.warn({ err, connectionId: push.connectionId }, 'a push could not be settled')
    }
  }

  /** What was sent and is not known to be would be sent once more, so a database that is slow for a moment is asked again. */
  async function settle(push: DuePush, settlement: PushSettlement): Promise<string[]> {
    for (let tries = 1; ; tries++) {
      try {
        return await outbox.settle(push, settlement)
      } catch (error) {
        if (tries === SETTLE_TRIES) throw error
      }
    }
  }

  function projectOf({ project = sender.projects[0]! }: Pick<PushToken, 'project'>): Project {
    const known = projects.get(project) ?? { failures: 0, pausedAt: 0, pausedUntil: 0, isProbing: false }
    projects.set(project, known)
    return known
  }

  /** [spec: sendPushNotification] One attempt to wake the device. What comes of it is a value, counted and logged by `conclude`. */
  async function sendPushNotification(token: PushToken, connectionId: string): Promise<PushOutcome> {
    const refusal = refuses(token)
    // Another instance may have it in its configuration already.
    return refusal === undefined ? sender.send(token, connectionId) : { kind: 'failed', reason: refusal, everybody: false }
  }

  async function conclude(push: DuePush, outcome: PushOutcome): Promise<void> {
    const { token, connectionId, attempts, ageMs } = push
    switch (outcome.kind) {
      case 'accepted':
        counts.accepted++
        log.debug(factsOf(push), 'push sent')
        await settle(push, { as: 'sent' })
        return
      case 'dead':
        counts.dead++
        log.info({ ...factsOf(push), reason: outcome.reason }, 'push token is dead and was dropped')
        for (const other of new Set([connectionId, ...(await settle(push, { as: 'dead', reason: outcome.reason }))])) tell(other, token)
        return
      case 'rejected':
        counts.rejected++
        log.error({ ...factsOf(push), reason: outcome.reason }, 'push was rejected and is not tried again')
        await settle(push, { as: 'over' })
        return
      case 'failed': {
        if (ageMs >= giveUpMs) return giveUp(push, outcome.reason)
        // The last attempt is made when its time is over, if it was not told to wait for longer.
        const ownMs = Math.min(jitter(backoff(attempts)), Math.max(giveUpMs - ageMs, retryMs))
        const afterMs = Math.max(outcome.retryAfterMs ?? 0, ownMs)
        counts.failed++
        log.warn(
          { ...factsOf(push), reason: outcome.reason, attempts: attempts + 1, retryInMs: Math.round(afterMs) },
          'push failed, trying again',
        )
        await settle(push, { as: 'again', afterMs, failed: true })
      }
    }
  }

  async function giveUp(push: DuePush, reason: string): Promise<void> {
    counts.gave_up++
    log.error({ ...factsOf(push), reason, attempts: push.attempts }, 'push was given up, the message stays in the queue')
    await settle(push, { as: 'over' })
  }

  function factsOf({ token: { token, project }, connectionId }: DuePush): object {
    return { connectionId, token: `…${ending(token)}`, ...(project === undefined ? {} : { project }) }
  }

  function pause(project: Project, retryAfterMs = 0): void {
    project.failures++
    const ownMs = project.failures >= MAX_FAILURES ? backoff(project.failures - MAX_FAILURES) : 0
    if (retryAfterMs === 0 && ownMs === 0) return
    project.pausedAt = now()
    project.pausedUntil = Math.max(project.pausedUntil, project.pausedAt + Math.max(retryAfterMs, ownMs))
  }

  function backoff(failures: number): number {
    return Math.min(retryMs * 2 ** failures, MAX_RETRY_MS)
  }

  /** Never earlier than asked for, and not all at once. */
  function jitter(ms: number): number {
    return ms * (1 + random() / 2)
  }

  function tell(connectionId: string, { token }: PushToken): void {
    for (const socket of new Set([ownerOf(connectionId), givers.get(connectionId)?.deref()]))
      if (socket?.isOpen) socket.send(pushTokenInvalid(connectionId, token))
    givers.delete(connectionId)
  }

  /** No new pushes; resolves when those on their way are settled, or after `withinMs`: then their claims run out. */
  async function stop(withinMs: number): Promise<void> {
    stopped = true
    await looking
    if (sending === 0) return
    let timer: NodeJS.Timeout | undefined
    await Promise.race([
      new Promise<void>((resolve) => (onIdle = resolve)),
      new Promise((resolve) => (timer = setTimeout(resolve, withinMs))),
    ])
    clearTimeout(timer)
  }
}

/** All of a token that a log line or a notification may show. */
export function ending(token: string): string {
  return token.slice(-6)
}

function pushTokenInvalid(connectionId: string, token: string): string {
  return JSON.stringify({ jsonrpc: '2.0', method: 'pushTokenInvalid', params: { connectionId, tokenEnding: ending(token) } })
}
