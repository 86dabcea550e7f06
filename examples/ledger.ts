/**
 * What was sent and what came, kept outside the service and judged without it: the service is not its own witness.
 *
 * A message is *added*, *received* once, and *acked*. It may be received a second time in one case only: it was received
 * but not acked when the socket was lost. Reading goes from the oldest message that is not acked to the newest without
 * leaving any out; a lost socket starts a new reading.
 */
export interface QueuedMessage {
  id: string
  receivedAt: string
  encryptedMessage: unknown
}

export interface Entry {
  /** Its place in the order in which the messages were added, from 1. */
  readonly number: number
  readonly payload: object
  id: string | undefined
  isReceived: boolean
  isAcked: boolean
  mayRepeat: boolean
}

const SHOWN_PROBLEMS = 10

export type Ledger = ReturnType<typeof createLedger>

export function createLedger() {
  const entries: Entry[] = []
  // An envelope of random bytes is its own name. The id cannot be it: messagesReceived may overtake the answer of addMessage.
  const byText = new Map<string, Entry>()
  const byId = new Map<string, Entry>()
  const problems: string[] = []
  const totals = { added: 0, bytes: 0, received: 0, repeated: 0, acked: 0 }
  let next = 1

  return { totals, add, stored, received, acked, socketLost, waiting, expect, isSound, verdict }

  /** To be called in the order in which the messages are added. */
  function add(payload: object): Entry {
    const entry = { number: entries.length + 1, payload, id: undefined, isReceived: false, isAcked: false, mayRepeat: false }
    const text = JSON.stringify(payload)
    entries.push(entry)
    byText.set(text, entry)
    totals.added++
    totals.bytes += text.length
    return entry
  }

  /** addMessage has answered. */
  function stored(entry: Entry, id: unknown): void {
    if (typeof id !== 'string') return expect(false, `addMessage answered ${JSON.stringify(id)} and not an id`)
    learnId(entry, id)
  }

  function received(messages: readonly QueuedMessage[]): void {
    for (const message of messages) receivedOne(message)
  }

  function receivedOne({ id, receivedAt, encryptedMessage }: QueuedMessage): void {
    // All values are strings, so equal text means the same bytes under the same keys in the same order.
    const entry = byText.get(JSON.stringify(encryptedMessage))
    if (!entry) {
      const changed = byId.get(id)
      if (changed) next = changed.number + 1
      return expect(false, changed ? `the payload of message ${changed.number} came back changed` : `${id} came and was never added`)
    }
    learnId(entry, id)
    expect(!Number.isNaN(Date.parse(receivedAt)), `message ${entry.number} has a receivedAt that is no date: ${receivedAt}`)
    expect(!entry.isAcked, `message ${entry.number} came again after it was acked`)
    if (!entry.isReceived) totals.received++
    else if (entry.mayRepeat) totals.repeated++
    else expect(entry.isAcked, `message ${entry.number} came again although no socket was lost`)
    entry.isReceived = true
    entry.mayRepeat = false

    while (entries[next - 1]?.isAcked) next++
    expect(entry.number === next || entry.isAcked, `message ${entry.number} came where message ${next} was next`)
    next = entry.number + 1
  }

  /** The service has answered that the messages are removed. */
  function acked(ids: readonly string[]): void {
    for (const entry of ids.map((id) => byId.get(id))) {
      if (!entry || entry.isAcked) continue
      entry.isAcked = true
      totals.acked++
    }
  }

  /** @returns how many messages may now come a second time. */
  function socketLost(): number {
    const unacked = entries.filter(({ isReceived, isAcked }) => isReceived && !isAcked)
    for (const entry of unacked) entry.mayRepeat = true
    next = 1
    return unacked.length
  }

  /** How many messages the queue must hold now. */
  function waiting(): number {
    return totals.added - totals.acked
  }

  function expect(isTrue: boolean, otherwise: string): void {
    if (!isTrue) problems.push(otherwise)
  }

  function isSound(): boolean {
    return problems.length === 0
  }

  /** @returns what went wrong, in sentences; nothing when all is well. */
  function verdict(): string[] {
    const missing = entries.filter(({ isReceived }) => !isReceived)
    expect(missing.length === 0, `never received: ${missing.length}, the first is message ${missing[0]?.number}`)
    expect(waiting() === 0, `never acked: ${waiting()}`)
    const more = problems.length - SHOWN_PROBLEMS
    return more > 0 ? [...problems.slice(0, SHOWN_PROBLEMS), `and ${more} more`] : problems
  }

  function learnId(entry: Entry, id: string): void {
    expect(entry.id === undefined || entry.id === id, `message ${entry.number} has two ids: ${entry.id} and ${id}`)
    const other = byId.get(id)
    expect(!other || other === entry, `messages ${other?.number} and ${entry.number} have the same id ${id}`)
    entry.id = id
    byId.set(id, entry)
  }
}
