import { randomUUID } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { DID } from '../test/helpers/service.js'
import { isRetryable, openSocket, type BenchSocket, type Delivered } from './socket.js'

/** About as large as an encrypted DIDComm envelope of a small message. */
const PADDING = 'x'.repeat(1_400)

/**
 * Connections with live sessions that ack what they get at once, and the adds for them. Everything is checked: each message
 * comes once, and per connection in the order of the adds.
 */
export interface Mailboxes {
  ids: string[]
  /** Sends the add. Adds of one connection must go through one socket, so that their order is known. */
  add(socket: BenchSocket, connectionId: string): Promise<void>
  /** Resolves when all that was added came and was acked. */
  settled(withinMs?: number): Promise<void>
  faults: { lost: number; repeated: number; outOfOrder: number }
  /** Not faults: calls that were refused for a while. */
  counts: { acksRepeated: number }
  close(): Promise<void>
}

export interface Arrival {
  connectionId: string
  /** performance.now() of this process, for both. */
  sentAt: number
  receivedAt: number
}

export async function openMailboxes(
  url: string,
  count: number,
  sockets: number,
  onArrival: (arrival: Arrival) => void = () => {},
): Promise<Mailboxes> {
  const ids: string[] = Array.from({ length: count }, () => randomUUID())
  const sentAt = new Map(ids.map((id) => [id, [] as number[]]))
  const seen = new Map(ids.map((id) => [id, new Set<number>()]))
  const newest = new Map<string, number>()
  const faults = { lost: 0, repeated: 0, outOfOrder: 0 }
  const counts = { acksRepeated: 0 }
  let waiting = 0 // for their arrival, or for the answer to their ack

  const opened = await Promise.all(
    Array.from({ length: sockets }, async () => {
      const socket: BenchSocket = await openSocket(url, (connectionId, messages) => receive(socket, connectionId, messages))
      return socket
    }),
  )
  await Promise.all(ids.map((connectionId, i) => opened[i % sockets]!.call('addLiveSession', { connectionId, sessionId: 'bench' })))

  return {
    ids,
    faults,
    counts,
    async add(socket, connectionId) {
      const times = sentAt.get(connectionId)!
      const n = times.push(performance.now()) - 1
      waiting++
      await socket.call('addMessage', { connectionId, recipientDids: [DID], payload: { n, ciphertext: PADDING } })
    },
    async settled(withinMs = 30_000) {
      for (const deadline = performance.now() + withinMs; waiting > 0 && performance.now() < deadline;) await sleep(1)
      faults.lost = waiting
    },
    async close() {
      await Promise.all(opened.map((socket) => socket.close()))
    },
  }

  function receive(socket: BenchSocket, connectionId: string, messages: Delivered[]): void {
    const receivedAt = performance.now()
    let fresh = 0
    for (const { encryptedMessage } of messages) {
      const n = encryptedMessage.n as number
      if (seen.get(connectionId)!.has(n)) {
        faults.repeated++
        continue
      }
      seen.get(connectionId)!.add(n)
      if (n < (newest.get(connectionId) ?? -1)) faults.outOfOrder++
      else newest.set(connectionId, n)
      fresh++
      onArrival({ connectionId, sentAt: sentAt.get(connectionId)![n]!, receivedAt })
    }
    void ack(
      socket,
      connectionId,
      messages.map(({ id }) => id),
    ).then(() => (waiting -= fresh))
  }

  /** Removing is idempotent: what was not answered in time is sent again, as a mediator does. */
  async function ack(socket: BenchSocket, connectionId: string, messageIds: string[]): Promise<void> {
    for (;;) {
      try {
        return await socket.call('removeMessages', { connectionId, messageIds })
      } catch (error) {
        if (!isRetryable(error)) throw error
        counts.acksRepeated++
      }
    }
  }
}
