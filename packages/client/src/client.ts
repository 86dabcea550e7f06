import { createCalls, restMs, type Call } from './calls.js'
import { createConnection } from './connection.js'
import type { MethodName, MethodParams, MethodResult, Methods, QueuedMessage } from './contract.js'
import { MessagePickupError } from './errors.js'
import { createEmitter, type EventName, type Listener } from './events.js'
import { METHODS } from './repeat.js'
import { openSocket as openDefault } from './socket-ws.js'
import type { OpenSocket } from './socket.js'

/**
 * The client: calls (calls.ts) over a socket that comes back (connection.ts), and the live sessions.
 *
 * A live session is wanted from addLiveSession until removeLiveSession, liveSessionReplaced or a refusal. The service ends
 * it with the socket; so on each new socket first the wanted sessions are added, in the order in which they were first
 * added, then what waited is sent, acks first, and when both are answered `sessionsRestored` tells the caller to look for
 * mail. What a session gets is passed on only while it is wanted.
 */

// How many sessions are added at the same time: more would have to wait in line at the service, whose calls have a deadline.
const ADDING = 128
// What the service read before it removed a message is here at the latest so long after the ack was answered.
const ECHO_MS = 5_000

export interface ClientOptions {
  /** `ws://` or `wss://`, with the path (`/ws`). Several are tried in turn. */
  url: string | readonly string[]
  /** Sent as `Authorization: Bearer`. Node only. */
  apiKey?: string
  /** A call fails when it is not answered in this time, repetitions included. Default 10,000. */
  callTimeoutMs?: number
  /** The longest time between two attempts to connect. Default 1,000. */
  maxReconnectDelayMs?: number
  /** How long one attempt may take. Default 5,000. */
  connectTimeoutMs?: number
  /** How many calls may wait while there is no socket. Default 1,000. */
  maxQueuedCalls?: number
  /** How many characters of frames may wait, for a socket or in it. Default 64 Mi. */
  maxQueuedChars?: number
  /** A socket silent for this long is pinged, after 2 s when a call is unanswered. Default 10,000. */
  pingIntervalMs?: number
  /** A socket that does not answer a ping in this time is lost. Default 3,000. */
  pongTimeoutMs?: number
  /** For tests and for platforms of another kind. */
  openSocket?: OpenSocket
}

export interface MessagePickupClient extends Methods {
  /** Begins to connect, which the first call does too. Rejects after `callTimeoutMs` without a service, and goes on trying. */
  connect(): Promise<void>
  on<Name extends EventName>(name: Name, listener: Listener<Name>): () => void
  off<Name extends EventName>(name: Name, listener: Listener<Name>): void
  readonly isConnected: boolean
  /** Takes no more calls (but acks), waits for the answers to those that there are, and closes the socket. */
  close(): Promise<void>
}

interface Session {
  readonly connectionId: string
  readonly sessionId: string
  /** The caller's own addLiveSession, while it is unanswered. */
  adding: Call | undefined
}

export function createClient(options: ClientOptions): MessagePickupClient {
  const { callTimeoutMs = 10_000, maxQueuedCalls = 1_000, maxQueuedChars = 64 * 1024 * 1024 } = options
  const keyPrefix = randomName()
  const events = createEmitter()
  const sessions = new Map<string, Session>()
  /** What the caller removed, until nothing that was read before can arrive: the time is that of the answer. */
  const removed = new Map<string, number>()
  const connecting = new Set<(error: MessagePickupError) => void>()
  /** The socket is open and the sessions have been added on it. */
  let isReady = false
  /** Changes with every socket, so that what was begun on a former one stops. */
  let generation = 0
  let closing: Promise<void> | undefined
  let isClosed = false

  const connection = createConnection({
    urls: urlsOf(options.url),
    apiKey: options.apiKey,
    openSocket: options.openSocket ?? openDefault,
    connectTimeoutMs: options.connectTimeoutMs ?? 5_000,
    maxReconnectDelayMs: options.maxReconnectDelayMs ?? 1_000,
    pingIntervalMs: options.pingIntervalMs ?? 10_000,
    pongTimeoutMs: options.pongTimeoutMs ?? 3_000,
    isWaiting: () => calls.isAnswerDue(),
    onOpen(url) {
      events.emit('connected', { url: safe(url) })
      void restore()
    },
    onFrame,
    onLost({ url, code, reason, wasOpen }) {
      generation++
      isReady = false
      calls.onLost()
      if (wasOpen) events.emit('disconnected', { url: safe(url), code, reason })
    },
    onWaiting: (next) => events.emit('reconnecting', { ...next, url: safe(next.url) }),
  })

  const calls = createCalls({ callTimeoutMs, maxQueuedCalls, maxQueuedChars, wire: connection, isReady: () => isReady })

  const passOn = Object.fromEntries(
    (Object.keys(METHODS) as MethodName[]).map((method) => [method, (params: object) => ask(method, params)]),
  ) as unknown as Methods

  return {
    ...passOn,
    addMessage: (params) => passOn.addMessage({ ...params, idempotencyKey: params.idempotencyKey ?? `${keyPrefix}-${calls.count() + 1}` }),
    takeFromQueue: async (params) => without(params.connectionId, await passOn.takeFromQueue(params)),
    removeMessages,
    addLiveSession,
    removeLiveSession,
    connect,
    on: events.on,
    off: events.off,
    get isConnected() {
      return isReady
    },
    close: () => (closing ??= close()),
  }

  async function connect(): Promise<void> {
    if (closing) throw closedError()
    if (isReady) return
    connection.start()
    await new Promise<void>((resolve, reject) => {
      const settle = (error?: MessagePickupError) => {
        off()
        clearTimeout(timer)
        connecting.delete(settle)
        if (error) reject(error)
        else resolve()
      }
      const off = events.on('connected', () => settle())
      const timer = setTimeout(() => {
        const why = connection.lastFailure ?? 'no answer'
        settle(new MessagePickupError('timeout', `Not connected within ${callTimeoutMs} ms (${why}); still trying.`, { retryable: true }))
      }, callTimeoutMs)
      connecting.add(settle)
    })
  }

  /**
   * A message that is taken while it is also delivered live arrives twice, the second time perhaps after its ack. Whoever
   * acks what he gets before he awaits anything else gets it once.
   */
  async function removeMessages(params: MethodParams<'removeMessages'>): Promise<null> {
    const keys = params.messageIds.map((id) => `${params.connectionId} ${id}`)
    for (const key of keys) removed.set(key, Infinity)
    try {
      await passOn.removeMessages(params)
    } catch (error) {
      for (const key of keys) removed.delete(key)
      throw error
    }
    const now = performance.now()
    for (const key of keys) {
      removed.delete(key) // answered last, forgotten last
      removed.set(key, now)
    }
    for (const [key, answeredAt] of removed) {
      if (answeredAt !== Infinity && now - answeredAt < ECHO_MS) break
      if (answeredAt !== Infinity) removed.delete(key)
    }
    return null
  }

  function without(connectionId: string, messages: QueuedMessage[]): QueuedMessage[] {
    return removed.size > 0 ? messages.filter(({ id }) => !removed.has(`${connectionId} ${id}`)) : messages
  }

  async function addLiveSession(params: MethodParams<'addLiveSession'>): Promise<MethodResult<'addLiveSession'>> {
    if (closing) throw closedError()
    const { connectionId, sessionId } = params
    const session: Session = { connectionId, sessionId, adding: undefined }
    sessions.delete(connectionId) // the newest is the last
    sessions.set(connectionId, session)
    try {
      const added = (await ask('addLiveSession', params, session)) as boolean
      if (!added) forget(session)
      return added
    } catch (error) {
      forget(session)
      if (error instanceof MessagePickupError && error.isOutcomeUnknown) {
        // It failed for the caller, so it must not be live behind his back.
        ask('removeLiveSession', { connectionId, sessionId }).catch(() => {})
      }
      throw error
    } finally {
      session.adding = undefined
    }
  }

  /**
   * Names the session, so that a late call cannot end the one that another mediator opened meanwhile; and where this client
   * has none (any more), there is nothing to end.
   */
  async function removeLiveSession(params: MethodParams<'removeLiveSession'>): Promise<MethodResult<'removeLiveSession'>> {
    const { connectionId } = params
    const session = sessions.get(connectionId)
    const sessionId = params.sessionId ?? session?.sessionId
    if (sessionId === undefined) return false
    if (session?.sessionId === sessionId) sessions.delete(connectionId)
    return (await ask('removeLiveSession', { ...params, sessionId })) as boolean
  }

  function ask(method: MethodName, params: object, session?: Session): Promise<unknown> {
    // Acks may still come while it closes: who has the messages in hand should not get them again.
    if (isClosed || (closing && method !== 'removeMessages')) return Promise.reject(closedError())
    if (!session) return calls.ask(method, params).answered
    // A newer session may take its place before it begins.
    const call = calls.ask(method, params, () => sessions.get(session.connectionId) === session)
    if (call.state !== 'settled') session.adding = call
    return call.answered
  }

  function onFrame(frame: unknown): void {
    const { id, method, params, result, error } = (frame ?? {}) as Record<string, unknown>
    if (typeof method === 'string') return onNotification(method, params)
    calls.onAnswer(id, result, error)
  }

  function onNotification(method: string, params: unknown): void {
    const { connectionId, sessionId, messages, token } = (params ?? {}) as Record<string, unknown>
    if (typeof connectionId !== 'string') return
    const session = sessions.get(connectionId)
    if (method === 'messagesReceived' && Array.isArray(messages)) {
      const fresh = without(connectionId, messages as QueuedMessage[])
      if (session && fresh.length > 0) events.emit(method, { connectionId, messages: fresh })
    } else if (method === 'liveSessionReplaced') {
      if (!session || session.sessionId !== sessionId) return // of a session that is over here anyway
      sessions.delete(connectionId)
      events.emit(method, { connectionId, sessionId: session.sessionId })
    } else if (method === 'pushTokenInvalid') {
      events.emit(method, { connectionId, ...(typeof token === 'string' ? { token } : {}) })
    }
  }

  /** A new socket: sessions, then acks, then the rest; then the caller is told. */
  async function restore(): Promise<void> {
    const mine = ++generation
    const restored: string[] = []
    const running = new Set<Promise<unknown>>()
    const track = (promise: Promise<unknown>) => {
      const settled: Promise<unknown> = promise.then(
        () => running.delete(settled),
        () => running.delete(settled),
      )
      running.add(settled)
    }
    for (const session of [...sessions.values()]) {
      while (running.size >= ADDING) await Promise.race(running)
      if (mine !== generation) return
      if (sessions.get(session.connectionId) !== session) continue
      if (session.adding) {
        track(session.adding.answered)
        calls.send(session.adding)
      } else {
        track(addAgain(session, mine).then((isLive) => isLive && restored.push(session.connectionId)))
      }
    }
    isReady = true
    for (const ack of calls.sendWaiting()) track(ack)
    while (running.size > 0) await Promise.race(running)
    if (mine === generation && restored.length > 0) {
      events.emit('sessionsRestored', { connectionIds: restored.filter((connectionId) => sessions.has(connectionId)) })
    }
  }

  /** Until the service answers, or it is wanted no more, or the socket is lost. */
  async function addAgain(session: Session, mine: number): Promise<boolean> {
    const { connectionId, sessionId } = session
    const isWanted = () => mine === generation && sessions.get(connectionId) === session
    for (let tries = 1; isWanted(); tries++) {
      try {
        if (await calls.askOnce('addLiveSession', { connectionId, sessionId })) return isWanted()
      } catch (error) {
        if (!isWanted() || !(error instanceof MessagePickupError)) return false
        if (!error.retryable) {
          sessions.delete(connectionId)
          events.emit('liveSessionFailed', { connectionId, sessionId, error })
          return false
        }
      }
      await new Promise((resolve) => setTimeout(resolve, restMs(tries)))
    }
    return false
  }

  function forget(session: Session): void {
    if (sessions.get(session.connectionId) === session) sessions.delete(session.connectionId)
  }

  async function close(): Promise<void> {
    generation++
    for (const settle of [...connecting]) settle(closedError())
    sessions.clear() // the service ends them with the socket
    await calls.allSettled()
    isClosed = true
    isReady = false
    connection.close()
  }
}

function urlsOf(url: string | readonly string[]): string[] {
  const urls = (typeof url === 'string' ? [url] : url).map((text) => {
    const parsed = new URL(text)
    if (!/^wss?:$/.test(parsed.protocol)) throw new TypeError(`url must begin with ws:// or wss://, it is ${safe(text)}`)
    // Who comes from the client of 2060 may still ask for its dialect, whose results are others.
    parsed.searchParams.delete('dialect')
    return parsed.href
  })
  if (urls.length === 0) throw new TypeError('url must name at least one service')
  return urls
}

/** Without what may be a secret. */
function safe(url: string): string {
  const { protocol, host, pathname } = new URL(url)
  return `${protocol}//${host}${pathname}`
}

/** Of this client among all that add messages to a connection. */
function randomName(): string {
  const { crypto } = globalThis as { crypto?: { randomUUID?(): string } }
  return crypto?.randomUUID?.() ?? `${Date.now().toString(36)}-${Math.random().toString(36).slice(2)}${Math.random().toString(36).slice(2)}`
}

const closedError = (): MessagePickupError => new MessagePickupError('closed', 'The client is closed.')
