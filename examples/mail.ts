import { randomUUID } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { createDid, createEnvelope } from './envelope.js'
import { createLedger, type Entry, type QueuedMessage } from './ledger.js'
import type { Mediator } from './mediator-socket.js'

const BATCH = 10 // what Credo asks for in one take
const PATIENCE_MS = 15_000

interface Arrival {
  at: number
  to: Mediator
  acked: Promise<void>
}

export type Mail = ReturnType<typeof createMail>

/** The mail of one wallet, that it gets through one mediator or the other, with the times that it takes and a ledger of it. */
export function createMail() {
  const connectionId = randomUUID()
  const recipientDid = createDid()
  const ledger = createLedger()
  /** By the payload, what waits for it. */
  const arrivals = new Map<string, (arrival: Arrival) => void>()

  return { ledger, goLive, isLive, endLive, add, send, ack, count, takeAll }

  /** From here on the wallet is at this mediator, and acks what comes. @returns how many messages wait from before */
  async function goLive(mediator: Mediator): Promise<number> {
    mediator.onMessages = (messages) => {
      const at = performance.now()
      ledger.received(messages)
      const acked = ack(mediator, messages)
      acked.catch((error: Error) => ledger.expect(false, error.message))
      for (const { encryptedMessage } of messages) arrivals.get(JSON.stringify(encryptedMessage))?.({ at, to: mediator, acked })
    }
    const answer = await mediator.call('addLiveSession', { connectionId, sessionId: randomUUID() })
    ledger.expect(answer === true, `addLiveSession at ${mediator.name} answered ${answer}`)
    return count(mediator)
  }

  async function isLive(mediator: Mediator): Promise<boolean> {
    return (await mediator.call('getLiveSession', { connectionId })) === true
  }

  function endLive(mediator: Mediator): Promise<boolean> {
    return mediator.call('removeLiveSession', { connectionId })
  }

  async function add(at: Mediator): Promise<void> {
    await store(at, ledger.add(createEnvelope(recipientDid)))
  }

  /** Adds one message at `from` and waits until it arrived at `to` and is acked there. */
  async function send(
    from: Mediator,
    to: Mediator,
    onAnswer: (answeredMs: number) => void = () => {},
  ): Promise<{ answeredMs: number; arrivedMs: number }> {
    const entry = ledger.add(createEnvelope(recipientDid))
    const text = JSON.stringify(entry.payload)
    const arrival = new Promise<Arrival>((resolve) => arrivals.set(text, resolve))
    const started = performance.now()
    const answer = store(from, entry).then(() => {
      const answeredMs = performance.now() - started
      onAnswer(answeredMs)
      return answeredMs
    })
    const what = `message ${entry.number}, added at ${from.name} for the wallet at ${to.name},`
    const [answeredMs, arrived] = await Promise.all([answer, inTime(arrival, what)])
    arrivals.delete(text)
    await arrived.acked
    if (arrived.to !== to) throw new Error(`${what} arrived at ${arrived.to.name}`)
    return { answeredMs, arrivedMs: arrived.at - started }
  }

  async function store(mediator: Mediator, entry: Entry): Promise<void> {
    ledger.stored(entry, await mediator.call('addMessage', { connectionId, recipientDids: [recipientDid], payload: entry.payload }))
  }

  async function ack(mediator: Mediator, messages: readonly QueuedMessage[]): Promise<void> {
    const messageIds = messages.map(({ id }) => id)
    await mediator.call('removeMessages', { connectionId, messageIds })
    ledger.acked(messageIds)
  }

  function count(mediator: Mediator): Promise<number> {
    return mediator.call('getAvailableMessageCount', { connectionId })
  }

  async function takeAll(mediator: Mediator): Promise<void> {
    for (let waits = await count(mediator); waits > 0; waits = await count(mediator)) {
      const messages: QueuedMessage[] = await mediator.call('takeFromQueue', { connectionId, limit: BATCH })
      if (messages.length === 0) throw new Error(`the count is ${waits}, but there is nothing to take`)
      ledger.received(messages)
      await ack(mediator, messages)
    }
  }
}

/** @throws Error when it takes longer than anything here may */
export function inTime<T>(work: Promise<T>, what: string): Promise<T> {
  const late = sleep(PATIENCE_MS, undefined, { ref: false }).then(() => {
    throw new Error(`${what} did not come within ${PATIENCE_MS} ms`)
  })
  return Promise.race([work, late])
}
