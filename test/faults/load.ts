import { setTimeout as sleep } from 'node:timers/promises'
import WebSocket from 'ws'
import type { Random } from '../helpers/random.js'
import { DID } from '../helpers/service.js'
import { CallFailed, openClient, type Client, type Outcomes } from './client.js'
import type { Ledger } from './ledger.js'

/** Mediators and senders that live through faults as real ones do: they connect again, somewhere else, and go on. */

const ACK_AFTER_MS = 20
const TAKE = 10
const POLL_MS = 250
/** Of what a poller takes it does not ack one in so many. */
const LEAVES_ONE_IN = 20
const KIB = 1024
const DRAIN_TRIES = 50

/** Errors after which nothing has been stored. */
const REFUSALS = new Set(['quota_exceeded', 'overloaded', 'rate_limited', 'shutting_down', 'payload_too_large', 'invalid_params'])

interface Received {
  id: string
  encryptedMessage: { text: string }
}

const textsOf = (messages: Received[]) => messages.map(({ encryptedMessage }) => encryptedMessage.text)

interface Options {
  urls: readonly string[]
  connections: readonly string[]
  ledger: Ledger
  outcomes: Outcomes
}

export interface Mediator {
  /** Resolves when all its live sessions have been opened once. */
  ready: Promise<void>
  /** Close codes of the sockets that it lost. */
  closes: number[]
  stop(): Promise<void>
}

/** One add that the ledger knows. @throws what the call throws; what is known then is known to the ledger too */
export async function addOne(
  ledger: Ledger,
  client: { call(method: string, params: object): Promise<unknown> },
  connectionId: string,
  bytes = 0,
): Promise<void> {
  const text = ledger.adding(connectionId)
  try {
    await client.call('addMessage', { connectionId, recipientDids: [DID], payload: { text, padding: 'x'.repeat(bytes) } })
    ledger.added(text)
  } catch (error) {
    if (error instanceof CallFailed && REFUSALS.has(error.code)) ledger.refused(text)
    throw error
  }
}

/** An ack is repeated until it is answered or the socket is lost: removing is idempotent. */
async function ack(client: Client, ledger: Ledger, connectionId: string, messages: Received[]): Promise<void> {
  while (client.socket.readyState === WebSocket.OPEN && messages.length > 0) {
    try {
      ledger.acking(textsOf(messages))
      await client.call('removeMessages', { connectionId, messageIds: messages.map(({ id }) => id) })
      return ledger.acked(textsOf(messages))
    } catch {
      await sleep(100)
    }
  }
}

/** @returns what came; it is in the ledger */
async function take(client: Client, ledger: Ledger, connectionId: string): Promise<Received[]> {
  const beganAt = performance.now()
  const messages: Received[] = await client.call('takeFromQueue', { connectionId, limit: TAKE })
  for (const text of textsOf(messages)) ledger.received(connectionId, text, 'take', beganAt)
  return messages
}

/** Holds a live session for each connection on one socket, acks what it gets after 20 ms, and takes what it missed. */
export function startMediator({ urls, connections, ledger, outcomes }: Options): Mediator {
  const closes: number[] = []
  const acking = new Set<Promise<void>>()
  let client: Client | undefined
  let stopped = false
  let isReady = () => {}
  const ready = new Promise<void>((resolve) => (isReady = resolve))
  const living = live()

  return {
    ready,
    closes,
    async stop() {
      while (acking.size > 0) await Promise.all(acking) // what it has got it acks, as long as it has a socket
      stopped = true
      client?.socket.terminate()
      await living
    },
  }

  async function live(): Promise<void> {
    for (let turn = 0; !stopped; turn++) {
      try {
        client = await openClient(urls[turn % urls.length]!, outcomes, onEvent)
      } catch {
        await sleep(100)
        continue
      }
      const mine = client
      await Promise.all(connections.map((connectionId) => begin(mine, connectionId)))
      if (mine.socket.readyState === WebSocket.OPEN) isReady()
      closes.push(await mine.closed)
    }
  }

  /** Credo's order; then what waits, until nothing does. */
  async function begin(mine: Client, connectionId: string): Promise<void> {
    while (mine.socket.readyState === WebSocket.OPEN && !stopped) {
      try {
        const [, , first] = await Promise.all([
          mine.call('removeLiveSession', { connectionId }),
          mine.call('addLiveSession', { connectionId, sessionId: 's' }),
          mine.call('getAvailableMessageCount', { connectionId }),
        ])
        for (let waiting = first; waiting > 0; waiting = await mine.call('getAvailableMessageCount', { connectionId })) {
          await ack(mine, ledger, connectionId, await take(mine, ledger, connectionId))
        }
        return
      } catch {
        await sleep(100)
      }
    }
  }

  function onEvent(method: string, params: { connectionId: string; messages: Received[] }): void {
    const mine = client
    if (method !== 'messagesReceived' || !mine) return
    for (const text of textsOf(params.messages)) ledger.received(params.connectionId, text, 'live')
    const acked = sleep(ACK_AFTER_MS).then(() => ack(mine, ledger, params.connectionId, params.messages))
    acking.add(acked)
    void acked.finally(() => acking.delete(acked))
  }
}

/** Takes now and then, without a live session, and does not ack some of it: that is taken again. */
export function startPoller({ urls, connections, ledger, outcomes, random }: Options & { random: Random }): { stop(): Promise<void> } {
  let stopped = false
  const polling = poll()
  return {
    async stop() {
      stopped = true
      await polling
    },
  }

  async function poll(): Promise<void> {
    for (let turn = 0; !stopped; turn++) {
      try {
        const client = await openClient(urls[turn % urls.length]!, outcomes)
        while (!stopped && client.socket.readyState === WebSocket.OPEN) {
          await Promise.all([sleep(POLL_MS), ...connections.map((connectionId) => look(client, connectionId))])
        }
        client.socket.terminate()
        await client.closed
      } catch {
        await sleep(100)
      }
    }
  }

  async function look(client: Client, connectionId: string): Promise<void> {
    try {
      const messages = await take(client, ledger, connectionId)
      const left = messages.filter(() => random.isOneIn(LEAVES_ONE_IN))
      ledger.left(textsOf(left))
      await ack(
        client,
        ledger,
        connectionId,
        messages.filter((message) => !left.includes(message)),
      )
    } catch {
      // counted; the next turn looks again
    }
  }
}

/** Takes and acks everything that is left, without a live session, and again where it fails. @returns what is counted as available after that */
export async function drain({ urls, connections, ledger, outcomes }: Options): Promise<number> {
  const client = await openClient(urls[0]!, outcomes)
  const drainOne = async (connectionId: string): Promise<number> => {
    for (let failures = 0; ;) {
      try {
        const messages = await take(client, ledger, connectionId)
        if (messages.length === 0) return await client.call('getAvailableMessageCount', { connectionId })
        await ack(client, ledger, connectionId, messages)
      } catch (error) {
        if (++failures > DRAIN_TRIES) throw error
        await sleep(100)
      }
    }
  }
  const counts = await Promise.all(connections.map(drainOne))
  client.socket.terminate()
  await client.closed
  return counts.reduce((sum, count) => sum + count, 0)
}

/** Adds `perSecond` messages, to one connection after the other, each add of a connection after the answer of the one before. */
export function startSender({
  urls,
  connections,
  ledger,
  outcomes,
  random,
  perSecond,
  bytes = [2 * KIB, 8 * KIB],
}: Options & { random: Random; perSecond: number; bytes?: [from: number, to: number] }): { stop(): Promise<void> } {
  let stopped = false
  let client: Promise<Client> | undefined
  let turn = 0
  const busy = new Set<string>()
  const running = new Set<Promise<void>>()

  const connected = () => {
    client ??= openClient(urls[turn++ % urls.length]!, outcomes).then((opened) => {
      void opened.closed.then(() => (client = undefined))
      return opened
    })
    return client
  }
  const add = async (connectionId: string) => {
    busy.add(connectionId)
    try {
      const { call } = await connected()
      const text = ledger.adding(connectionId)
      const payload = { text, padding: 'x'.repeat(random.between(...bytes)) }
      await call('addMessage', { connectionId, recipientDids: [DID], payload }).catch((error: unknown) => {
        if (error instanceof CallFailed && REFUSALS.has(error.code)) ledger.refused(text)
        throw error
      })
      ledger.added(text)
    } catch {
      if (client) await client.catch(() => (client = undefined))
    } finally {
      busy.delete(connectionId)
    }
  }
  const started = performance.now()
  let sent = 0
  const timer = setInterval(() => {
    for (; !stopped && sent < ((performance.now() - started) / 1_000) * perSecond; sent++) {
      const connectionId = connections[sent % connections.length]!
      if (busy.has(connectionId)) continue
      const adding = add(connectionId)
      running.add(adding)
      void adding.finally(() => running.delete(adding))
    }
  }, 5)

  return {
    async stop() {
      stopped = true
      clearInterval(timer)
      await Promise.all(running)
      await client?.then(
        ({ socket }) => socket.terminate(),
        () => {},
      )
    },
  }
}
