/**
 * What really happened, kept outside of the service: every add with its outcome, every message that came, every ack.
 * Its rules are A1-A7 of reliability.md. A message is known by its text, because an add whose answer was lost has no id.
 */
export interface Ledger {
  /** An add was sent. @returns the text to send */
  adding(connectionId: string): string
  /** It was answered with an id. Without this its outcome is unknown: it may come, or not. */
  added(text: string): void
  /** A message came, down a socket or from take. */
  received(connectionId: string, text: string, via: 'live' | 'take'): void
  /** A removeMessages has been answered. */
  acked(texts: string[]): void
  report(): Report
  /** Acknowledged and not yet received. */
  outstanding(): string[]
}

export interface Report {
  added: number
  received: number
  repeats: number
  /** A1: answered, and never received. */
  lost: string[]
  /** A2: received by a connection that it was not added to, or never added. */
  ghosts: string[]
  /** A3: received after its ack was answered. */
  resurrected: string[]
  /** A4: of two adds one after the other the later was received first, both live or both by take. */
  inversions: string[]
  /** A7: the longest from the answer of an add to its first reception, in milliseconds. */
  worstDelayMs: number
}

interface Entry {
  connectionId: string
  place: number
  addedAt: number | undefined
  receivedAt: number | undefined
  ackedAt: number | undefined
}

export function createLedger(): Ledger {
  const entries = new Map<string, Entry>()
  const places = new Map<string, number>()
  // By connection and way, the place of the latest first reception. The ways are apart because the backlog waits to be taken
  // while what arrives is delivered.
  const newest = new Map<string, number>()
  const report = { received: 0, repeats: 0, ghosts: [] as string[], resurrected: [] as string[], inversions: [] as string[] }

  return {
    adding(connectionId) {
      const place = (places.get(connectionId) ?? 0) + 1
      places.set(connectionId, place)
      const text = `${connectionId}#${place}`
      entries.set(text, { connectionId, place, addedAt: undefined, receivedAt: undefined, ackedAt: undefined })
      return text
    },
    added: (text) => void (entries.get(text)!.addedAt = performance.now()),
    received(connectionId, text, via) {
      const entry = entries.get(text)
      if (!entry || entry.connectionId !== connectionId) return void report.ghosts.push(text)
      if (entry.ackedAt !== undefined) report.resurrected.push(text)
      if (entry.receivedAt !== undefined) return void report.repeats++
      entry.receivedAt = performance.now()
      report.received++
      // Adds of one connection are sent one after the other, so their places are the order in which they were accepted.
      const way = `${connectionId} by ${via}`
      if (entry.place < (newest.get(way) ?? 0)) report.inversions.push(`#${entry.place} after #${newest.get(way)} of ${way}`)
      else newest.set(way, entry.place)
    },
    acked(texts) {
      for (const text of texts) {
        const entry = entries.get(text)
        if (entry) entry.ackedAt ??= performance.now()
      }
    },
    outstanding: () =>
      [...entries].filter(([, entry]) => entry.addedAt !== undefined && entry.receivedAt === undefined).map(([text]) => text),
    report() {
      const all = [...entries.entries()]
      const known = all.filter(([, entry]) => entry.addedAt !== undefined)
      return {
        ...report,
        added: known.length,
        lost: known.filter(([, entry]) => entry.receivedAt === undefined).map(([text]) => text),
        worstDelayMs: Math.max(0, ...known.map(([, { addedAt, receivedAt }]) => (receivedAt ?? 0) - addedAt!)),
      }
    },
  }
}
