/** What went in and what came out. Every message is told apart by its connection and `n`, its place among that connection's adds. */

export interface Faults {
  /** The add was answered, and the message never came. */
  lost: number
  repeated: number
  /** Nobody added it, or its id is not the one that the add was answered with. */
  ghost: number
  outOfOrder: number
  /** The payload is not the one that was added. */
  altered: number
}

export interface Ledger {
  /** @returns the `n` to send */
  sent(connection: number): number
  answered(connection: number, n: number, id: string): void
  /** It was answered with an error. The message may come, as one that timed out, but need not. */
  refused(connection: number, n: number): void
  /** @returns false when it is not to be counted: a repeated message, or a ghost */
  came(connection: number, n: number, id: string, intact: boolean): boolean
  /** Messages of this connection that were answered and did not come. */
  missing(connection: number): number
  /** Call it when nothing is to come any more: what is missing is lost. */
  faults(): Faults
  connections: number
}

const UNDER_WAY = undefined
const REFUSED = null

export const noFaults = (): Faults => ({ lost: 0, repeated: 0, ghost: 0, outOfOrder: 0, altered: 0 })

export const sumOfFaults = (faults: Faults): number => Object.values(faults).reduce((sum: number, count: number) => sum + count, 0)

export function createLedger(connections: number): Ledger {
  const boxes = Array.from({ length: connections }, () => ({
    answers: [] as (string | typeof UNDER_WAY | typeof REFUSED)[],
    came: [] as (string | undefined)[],
    newest: -1,
  }))
  const found = noFaults()
  const missing = ({ answers, came }: (typeof boxes)[number]) =>
    answers.reduce((sum, answer, n) => sum + (typeof answer === 'string' && came[n] === undefined ? 1 : 0), 0)

  return {
    connections,
    sent: (connection) => boxes[connection]!.answers.push(UNDER_WAY) - 1,
    answered(connection, n, id) {
      const box = boxes[connection]!
      box.answers[n] = id
      // A live message may overtake the answer to its add.
      if (box.came[n] !== undefined && box.came[n] !== id) found.ghost++
    },
    refused(connection, n) {
      boxes[connection]!.answers[n] = REFUSED
    },
    came(connection, n, id, intact) {
      const box = boxes[connection]
      if (!box || !(n >= 0 && n < box.answers.length) || (typeof box.answers[n] === 'string' && box.answers[n] !== id)) {
        found.ghost++
        return false
      }
      if (box.came[n] !== undefined) {
        found.repeated++
        return false
      }
      box.came[n] = id
      if (n < box.newest) found.outOfOrder++
      else box.newest = n
      if (!intact) found.altered++
      return true
    },
    missing: (connection) => missing(boxes[connection]!),
    faults: () => ({ ...found, lost: boxes.reduce((sum, box) => sum + missing(box), 0) }),
  }
}
