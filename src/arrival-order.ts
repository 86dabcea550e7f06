/**
 * Makes the calls of one caller for one connection take effect in the order of their arrival. A mediator sends
 * removeLiveSession, addLiveSession and getAvailableMessageCount back to back without awaiting any of them, and the
 * last must not overtake the first. Calls for different connections do not wait for each other.
 */
export interface ArrivalOrder {
  /**
   * Begins `task` when every earlier task of `key` has ended, save that neighbours with the same `overlaps` mark run together.
   * It has ended when it calls `ended`, which it must do however it ends, and before whoever waits for it goes on; it must not throw.
   */
  run(key: string, overlaps: string | undefined, task: Task): void
}

// It is told by a call, and not by a promise that it returns: this is on the path of every message. docs/decisions/0008
export type Task = (ended: () => void) => void

/** So many lines in which nobody is are kept: to make and to lose one for each call costs more than the rest of it. */
const MAX_EMPTY_LINES = 1_000

interface Line {
  /** Of the tasks that run now. */
  overlaps: string | undefined
  running: number
  /** In the order of their arrival; made when somebody has to wait. */
  waiting: { overlaps: string | undefined; task: Task }[] | undefined
}

export function createArrivalOrder(): ArrivalOrder {
  const lines = new Map<string, Line>()
  let mostLines = MAX_EMPTY_LINES

  return {
    // A lone call, which most are, waits for nobody: it begins at once.
    run(key, overlaps, task) {
      const line = lineOf(key)
      if (line.running === 0 || (!line.waiting && overlaps !== undefined && line.overlaps === overlaps)) {
        line.overlaps = overlaps
        line.running++
        begin(line, task)
      } else {
        ;(line.waiting ??= []).push({ overlaps, task })
      }
    },
  }

  function lineOf(key: string): Line {
    let line = lines.get(key)
    if (line) return line
    if (lines.size >= mostLines) {
      for (const [one, { running }] of lines) if (running === 0) lines.delete(one)
      mostLines = 2 * lines.size + MAX_EMPTY_LINES // so that those in use are not walked for each new one
    }
    line = { overlaps: undefined, running: 0, waiting: undefined }
    lines.set(key, line)
    return line
  }

  function begin(line: Line, task: Task): void {
    task(() => {
      if (--line.running === 0) next(line)
    })
  }

  /** Lets the next one begin, and those behind it that run together with it. */
  function next(line: Line): void {
    const { waiting } = line
    if (!waiting) return
    const { overlaps } = waiting[0]!
    line.overlaps = overlaps
    const other = overlaps === undefined ? 1 : waiting.findIndex((one) => one.overlaps !== overlaps)
    const group = waiting.splice(0, other < 0 ? waiting.length : other)
    if (waiting.length === 0) line.waiting = undefined
    line.running = group.length
    for (const { task } of group) begin(line, task)
  }
}
