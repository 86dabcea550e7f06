/**
 * What really happened, kept outside of the service: every add with its outcome, every message that came, every ack. A message is
 * known by its text, because an add whose answer was lost has no id. What must be true of it stands in rules.ts.
 */
export interface Ledger {
  /** An add was sent; `together` with the one before, without waiting for its answer. @returns the text to send */
  adding(connectionId: string, together?: boolean): string
  /** It was answered with an id. Without this, and without `refused`, its outcome is unknown: it may come, or not. */
  added(text: string): void
  /** It was answered with an error that says that nothing was stored. */
  refused(text: string): void
  /** A message came, down a socket or from take. `beganAt`: when the take that brought it was sent. */
  received(connectionId: string, text: string, via: 'live' | 'take', beganAt?: number): void
  /** A removeMessages was sent. Should its answer be lost, it may have taken effect, or the message comes again. */
  acking(texts: string[]): void
  /** It was answered. */
  acked(texts: string[]): void
  /** Received and kept from being acked by the test: it must come again, and that is no repeat. */
  left(texts: string[]): void
  /** These connections have nobody who waits: their mail is late only when it is not there in the end. */
  waiting(connectionIds: readonly string[]): void
  /** The fault hits these connections, so repeats there have a reason. */
  touched(connectionIds: readonly string[]): void
  report(): Report
  /** Acknowledged and not yet received, on connections where somebody waits. */
  outstanding(): string[]
}

export interface Report {
  added: number
  received: number
  /** Deliveries of what had been received before, other than what the test left. */
  repeats: number
  /** Of these, on connections that no fault touched. */
  strayRepeats: string[]
  /** A1: answered, and never received. */
  lost: string[]
  /** A2: received by a connection that it was not added to, or never added, or although its add was refused. */
  ghosts: string[]
  /** A3: received by a delivery that began after its ack was answered. */
  resurrected: string[]
  /** A4: of two adds one after the other the later was received first, both live or both by take. Redeliveries have no order. */
  inversions: string[]
  /** A6: received and in the end neither acked nor, for all we know, in the queue. */
  unacked: string[]
  /** A7: the longest from the answer of an add to its first reception, in milliseconds, where somebody waits. */
  worstDelayMs: number
}

interface Entry {
  connectionId: string
  place: number
  /** Adds that were sent together have one order. */
  order: number
  addedAt: number | undefined
  isRefused: boolean
  receivedAt: number | undefined
  isLeft: boolean
  isAckSent: boolean
  ackedAt: number | undefined
}

export function createLedger(): Ledger {
  const entries = new Map<string, Entry>()
  const lasts = new Map<string, Entry>()
  // By connection and way, in the order of first reception. The ways are apart because the backlog waits to be taken while what
  // arrives is delivered.
  const firsts = new Map<string, Entry[]>()
  const nobodyWaits = new Set<string>()
  const touched = new Set<string>()
  const repeats: Entry[] = []
  const report = { received: 0, ghosts: [] as string[], resurrected: [] as string[] }

  const isKnown = ({ addedAt }: Entry) => addedAt !== undefined
  const isWaitedFor = ({ connectionId }: Entry) => !nobodyWaits.has(connectionId)
  const nameOf = ({ connectionId, place }: Entry) => `${connectionId}#${place}`
  const names = (test: (entry: Entry) => boolean) => [...entries.values()].filter(test).map(nameOf)

  return {
    adding(connectionId, together = false) {
      const last = lasts.get(connectionId)
      const entry: Entry = {
        connectionId,
        place: (last?.place ?? 0) + 1,
        order: (last?.order ?? 0) + (together ? 0 : 1),
        ...{ addedAt: undefined, isRefused: false, receivedAt: undefined, isLeft: false, isAckSent: false, ackedAt: undefined },
      }
      lasts.set(connectionId, entry)
      entries.set(nameOf(entry), entry)
      return nameOf(entry)
    },
    added: (text) => void (entries.get(text)!.addedAt = performance.now()),
    refused: (text) => void (entries.get(text)!.isRefused = true),
    received(connectionId, text, via, beganAt = performance.now()) {
      const entry = entries.get(text)
      if (!entry || entry.connectionId !== connectionId || entry.isRefused) return void report.ghosts.push(text)
      if (entry.ackedAt !== undefined && entry.ackedAt < beganAt) report.resurrected.push(text)
      const isExpected = entry.isLeft
      entry.isLeft = false
      if (isExpected) return
      if (entry.receivedAt !== undefined) return void repeats.push(entry)
      entry.receivedAt = performance.now()
      report.received++
      const way = `${connectionId} by ${via}`
      const before = firsts.get(way)
      if (before) before.push(entry)
      else firsts.set(way, [entry])
    },
    acking(texts) {
      for (const text of texts) {
        const entry = entries.get(text)
        if (entry) entry.isAckSent = true
      }
    },
    acked(texts) {
      for (const text of texts) {
        const entry = entries.get(text)
        if (entry) entry.ackedAt ??= performance.now()
      }
    },
    left: (texts) => texts.forEach((text) => (entries.get(text)!.isLeft = true)),
    waiting: (connectionIds) => connectionIds.forEach((connectionId) => nobodyWaits.add(connectionId)),
    touched: (connectionIds) => connectionIds.forEach((connectionId) => touched.add(connectionId)),
    outstanding: () => names((entry) => isKnown(entry) && entry.receivedAt === undefined && isWaitedFor(entry)),
    report: () => ({
      ...report,
      added: names(isKnown).length,
      repeats: repeats.length,
      strayRepeats: repeats.filter(({ connectionId }) => !touched.has(connectionId)).map(nameOf),
      lost: names((entry) => isKnown(entry) && entry.receivedAt === undefined),
      inversions: [...firsts].flatMap(([way, received]) => inversionsOf(way, received.filter(isKnown))),
      unacked: names(({ receivedAt, isAckSent, ackedAt }) => receivedAt !== undefined && !isAckSent && ackedAt === undefined),
      worstDelayMs: [...entries.values()].reduce(
        (worst, entry) => (isWaitedFor(entry) ? Math.max(worst, (entry.receivedAt ?? 0) - (entry.addedAt ?? Infinity)) : worst),
        0,
      ),
    }),
  }
}

/**
 * Adds of one connection are sent one after the other, so the orders of those that were answered are the order in which they were
 * accepted. One whose outcome is unknown may have been accepted after the next.
 */
function inversionsOf(way: string, received: Entry[]): string[] {
  let newest = received[0]
  return received.flatMap((entry) => {
    if (entry.order < newest!.order) return [`#${entry.place} after #${newest!.place} of ${way}`]
    newest = entry
    return []
  })
}
