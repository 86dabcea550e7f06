import {
  createClient,
  MessagePickupError,
  type ClientOptions,
  type MessagePickupClient,
  type MethodParams,
  type QueuedMessage,
} from './index.js'

/**
 * A mediator's queue, for any version of Credo: its calls, its live sessions, and what is delivered in them.
 *
 * A live session begins and ends with Credo's events. While it is open every message goes to the wallet by Credo's
 * deliverMessages, in order; it leaves the queue when Credo removes it, which is the wallet's ack. What a session was handed
 * and has not acked is remembered, because after a reconnect, or when the wallet asks while mail arrives, the service gives
 * it once more, and wallets do not recognise what they have.
 */

/** How long the service keeps a message in flight by default: what is un-acked for longer is meant to come again. */
const IN_FLIGHT_MS = 30_000
const RETRY_MS = 1_000

/** What Credo has in its queue. Its types differ by version in names only. */
export interface EncryptedMessage {
  protected: string
  iv: string
  ciphertext: string
  tag: string
}

export interface CredoMessage {
  id: string
  receivedAt: Date
  encryptedMessage: EncryptedMessage
}

export interface TakeOptions {
  connectionId: string
  recipientDid?: string
  limit?: number
  limitBytes?: number
  deleteMessages?: boolean
}

export interface AddOptions {
  connectionId: string
  recipientDids: string[]
  payload: EncryptedMessage
  receivedAt?: Date
}

/** What the mediator knows of a connection. */
export interface ConnectionInfo {
  /** Device token, for a push when the wallet has no live session. */
  fcmNotificationToken?: string
  /** Bytes that the wallet accepts in one delivery. */
  maxReceiveBytes?: number
}

/** The part of Credo's Agent that is the same in all its versions. */
export interface AnyAgent {
  events: {
    on(event: string, listener: (event: never) => void): void
    off(event: string, listener: (event: never) => void): void
  }
  config: { logger: { warn(message: string, data?: Record<string, unknown>): void } }
}

/** Credo's message pickup API. */
export interface MessagePickup {
  deliverMessages(options: { pickupSessionId: string; messages: CredoMessage[] }): Promise<void>
}

/** What is taken of an agent here. */
interface Agent extends MessagePickup {
  on(event: string, listener: (event: SessionEvent) => void): void
  off(event: string, listener: (event: SessionEvent) => void): void
  warn(text: string, data: object): void
}

interface SessionEvent {
  payload: { session: { id: string; connectionId: string; role: string } }
}

interface EventNames {
  saved: string
  removed: string
}

/** The same for all versions of Credo. */
export interface CredoQueue {
  /** The client below, with its events and all methods. */
  readonly client: MessagePickupClient
  /** Called for each message added or taken. As the client of 2060 has it. */
  setConnectionInfo(callback: (connectionId: string) => Promise<ConnectionInfo | undefined>): void
  /** Delivers by the caller's own means instead of the agent's. As the client of 2060 has it. */
  messagesReceived(callback: (data: { connectionId: string; messages: CredoMessage[] }) => void | Promise<void>): void
  removeAllMessages(params: MethodParams<'removeAllMessages'>): Promise<void>
  getLiveSession(params: MethodParams<'getLiveSession'>): Promise<boolean>
  addLiveSession(params: MethodParams<'addLiveSession'>): Promise<boolean>
  removeLiveSession(params: MethodParams<'removeLiveSession'>): Promise<boolean>
  /** Finishes what is in flight. Call it before the agent's shutdown. */
  disconnect(): Promise<void>
}

interface Session {
  readonly id: string
  readonly connectionId: string
  /** By id, when it was handed to the wallet. */
  readonly handed: Map<string, number>
}

export function createCredoQueue(options: ClientOptions, names: EventNames) {
  const client = createClient(options)
  const sessions = new Map<string, Session>()
  /** Per connection, what was begun last: deliveries are packed one after the other, or they would overtake each other. */
  const lines = new Map<string, Promise<unknown>>()
  let connectionInfo: (connectionId: string) => Promise<ConnectionInfo | undefined> = async () => undefined
  let callback: ((data: { connectionId: string; messages: CredoMessage[] }) => void | Promise<void>) | undefined
  let agent: Agent | undefined

  client.on('messagesReceived', ({ connectionId, messages }) => {
    inLine(connectionId, () => deliver(connectionId, messages)).catch(() => {}) // it is in the log
  })
  client.on('sessionsRestored', ({ connectionIds }) => {
    for (const connectionId of connectionIds) lookForMail(connectionId)
  })
  client.on('liveSessionReplaced', ({ connectionId, sessionId }) => forget(connectionId, sessionId))

  const shared: CredoQueue = {
    client,
    removeAllMessages: async (params) => void (await client.removeAllMessages(params)),
    getLiveSession: async (params) => (await client.getLiveSession(params)) === true,
    addLiveSession: client.addLiveSession,
    removeLiveSession: client.removeLiveSession,
    setConnectionInfo,
    messagesReceived,
    disconnect,
  }
  return { shared, count, take, add, remove, connect }

  function setConnectionInfo(given: typeof connectionInfo): void {
    connectionInfo = given
  }

  function messagesReceived(given: typeof callback): void {
    callback = given
  }

  async function connect(given: Agent | undefined): Promise<void> {
    if (given && !agent) {
      agent = given
      agent.on(names.saved, onSaved)
      agent.on(names.removed, onRemoved)
    }
    await client.connect()
  }

  async function disconnect(): Promise<void> {
    agent?.off(names.saved, onSaved)
    agent?.off(names.removed, onRemoved)
    sessions.clear()
    await client.close()
  }

  function count({ connectionId, recipientDid }: { connectionId: string; recipientDid?: string }): Promise<number> {
    return client.getAvailableMessageCount({ connectionId, ...given({ recipientDid }) })
  }

  /**
   * With deleteMessages (Pickup V1) it is one statement at the service: a wallet behind a balancer asks several instances at
   * the same time, and reading first and removing then gave it 10 % twice. What is on its way is lost with a socket, as V1 has it.
   */
  async function take({ connectionId, recipientDid, limit, limitBytes, deleteMessages }: TakeOptions): Promise<CredoMessage[]> {
    const { maxReceiveBytes } = (await connectionInfo(connectionId)) ?? {}
    const params = { connectionId, ...given({ recipientDid, limit, limitBytes: limitBytes ?? maxReceiveBytes }) }
    const messages = deleteMessages ? await client.takeFromQueue({ ...params, deleteMessages }) : await takeFresh(params)
    return messages.map(toCredo)
  }

  async function add({ connectionId, recipientDids, payload, receivedAt }: AddOptions): Promise<string> {
    const { fcmNotificationToken: token } = (await connectionInfo(connectionId)) ?? {}
    return client.addMessage({
      connectionId,
      recipientDids,
      payload,
      ...given({ receivedAt: receivedAt?.toISOString(), pushNotificationToken: token ? { type: 'fcm', token } : undefined }),
    })
  }

  async function remove({ connectionId, messageIds }: { connectionId: string; messageIds: string[] }): Promise<void> {
    await client.removeMessages({ connectionId, messageIds })
    const handed = sessions.get(connectionId)?.handed
    for (const id of messageIds) handed?.delete(id)
  }

  /** Without what this session has in hand. An empty answer means an empty queue, so it goes on until one of the two is true. */
  async function takeFresh(params: MethodParams<'takeFromQueue'>): Promise<QueuedMessage[]> {
    for (;;) {
      const messages = await client.takeFromQueue(params)
      const session = sessions.get(params.connectionId)
      if (!session || messages.length === 0) return messages
      const now = performance.now()
      const fresh = messages.filter(({ id }) => now - (session.handed.get(id) ?? -Infinity) > IN_FLIGHT_MS)
      for (const { id } of fresh) session.handed.set(id, now)
      if (fresh.length > 0) return fresh
    }
  }

  function onSaved({ payload: { session } }: SessionEvent): void {
    if (session.role !== 'MessageHolder') return
    const mine: Session = { id: session.id, connectionId: session.connectionId, handed: new Map() }
    sessions.set(mine.connectionId, mine)
    void open(mine)
  }

  function onRemoved({ payload: { session } }: SessionEvent): void {
    if (session.role !== 'MessageHolder') return
    forget(session.connectionId, session.id)
    client.removeLiveSession({ connectionId: session.connectionId, sessionId: session.id }).catch((error: unknown) => {
      if (!isOver(error))
        agent?.warn('could not end a live session, it ends with the socket', { connectionId: session.connectionId, error })
    })
  }

  /** Credo has the session already, so it is opened for as long as that takes. The wallet counts and takes by itself. */
  async function open(session: Session): Promise<void> {
    for (let tries = 1; isOpen(session); tries++) {
      try {
        await client.addLiveSession({ connectionId: session.connectionId, sessionId: session.id })
        if (tries > 1) lookForMail(session.connectionId) // what the wallet was told then was not the whole truth
        return
      } catch (error) {
        if (isOver(error)) return
        agent?.warn('could not open a live session', { connectionId: session.connectionId, tries, error })
        if (error instanceof MessagePickupError && !error.retryable && !error.isOutcomeUnknown) return
        await new Promise((resolve) => setTimeout(resolve, RETRY_MS))
      }
    }
  }

  /** What arrived while there was no session at the service waits in the queue: it is delivered as if it came now. */
  function lookForMail(connectionId: string): void {
    inLine(connectionId, async () => {
      const session = sessions.get(connectionId)
      if (!session) return
      for (;;) {
        const messages = await takeFresh({ connectionId })
        if (messages.length === 0 || !isOpen(session)) return
        await deliver(connectionId, messages)
      }
    }).catch(() => {}) // it is in the log
  }

  async function deliver(connectionId: string, messages: QueuedMessage[]): Promise<void> {
    if (callback) return callback({ connectionId, messages: messages.map(toCredo) })
    const session = sessions.get(connectionId)
    if (!session || !agent) return // they stay in the queue
    const { maxReceiveBytes = Infinity } = (await connectionInfo(connectionId)) ?? {}
    for (const batch of batches(messages, maxReceiveBytes)) {
      if (!isOpen(session)) return
      const now = performance.now()
      for (const { id } of batch) session.handed.set(id, now)
      await agent.deliverMessages({ pickupSessionId: session.id, messages: batch.map(toCredo) })
    }
  }

  function inLine<T>(connectionId: string, task: () => Promise<T>): Promise<T> {
    const result = (lines.get(connectionId) ?? Promise.resolve()).then(task)
    const settled = result
      .catch((error: unknown) => {
        // What was not delivered is in flight until its session or its lease is over, and then it comes again.
        if (!isOver(error)) agent?.warn('messages were not delivered, they stay in the queue', { connectionId, error })
      })
      .then(() => {
        if (lines.get(connectionId) === settled) lines.delete(connectionId)
      })
    lines.set(connectionId, settled)
    return result
  }

  function isOpen(session: Session): boolean {
    return sessions.get(session.connectionId) === session
  }

  function forget(connectionId: string, sessionId: string): void {
    if (sessions.get(connectionId)?.id === sessionId) sessions.delete(connectionId)
  }
}

/** @param pickup asked each time: an agent has its modules only once it is made */
export function agentOf({ events, config }: AnyAgent, pickup: () => MessagePickup): Agent {
  return {
    on: (event, listener: (event: SessionEvent) => void) => events.on(event, listener),
    off: (event, listener: (event: SessionEvent) => void) => events.off(event, listener),
    deliverMessages: (options) => pickup().deliverMessages(options),
    warn: (text, data) => config.logger.warn(text, { ...data }),
  }
}

function toCredo({ id, receivedAt, encryptedMessage }: QueuedMessage): CredoMessage {
  // It is what Credo itself added.
  return { id, receivedAt: new Date(receivedAt), encryptedMessage: encryptedMessage as EncryptedMessage }
}

/** In order, each within the limit; a message that is larger goes alone. */
function batches(messages: QueuedMessage[], limitBytes: number): QueuedMessage[][] {
  if (limitBytes === Infinity) return [messages]
  const all: QueuedMessage[][] = []
  let bytes = Infinity
  for (const message of messages) {
    const own = JSON.stringify(message.encryptedMessage).length // Base64 and keys: one byte each
    if (bytes + own > limitBytes) {
      all.push([])
      bytes = 0
    }
    all.at(-1)!.push(message)
    bytes += own
  }
  return all
}

const isOver = (error: unknown): boolean => error instanceof MessagePickupError && error.code === 'closed'

/** Without the fields that are undefined: the service takes a field that is there at its word. */
function given<T extends object>(fields: T): { [Key in keyof T]?: Exclude<T[Key], undefined> } {
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined)) as {
    [Key in keyof T]?: Exclude<T[Key], undefined>
  }
}
