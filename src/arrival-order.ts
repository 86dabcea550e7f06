/**
 * Makes the calls of one caller for one connection take effect in the order of their arrival. A mediator sends
 * removeLiveSession, addLiveSession and getAvailableMessageCount back to back without awaiting any of them, and the
 * last must not overtake the first. Calls for different connections do not wait for each other.
 */
export interface ArrivalOrder {
  /**
   * Runs `task` after every earlier task of `key`, save that neighbours with the same `overlaps` mark run together.
   * A task that failed does not keep the next from running. It fails by its promise and does not throw.
   */
  run<T>(key: string, overlaps: string | undefined, task: () => Promise<T>): Promise<T>
}

/** So many lines in which nobody is are kept: to make and to lose one for each call costs more than the rest of it. */
const MAX_EMPTY_LINES = 1_000

interface Line {
  /** Of the tasks that run now. */
  overlaps: string | undefined
  running: number
  /** In the order of their arrival; made when somebody has to wait. */
  waiting: { overlaps: string | undefined; begin: () => void }[] | undefined
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
        return begin(line, task)
      }
      const waiting = (line.waiting ??= [])
      return new Promise((resolve, reject) => {
        waiting.push({ overlaps, begin: () => void begin(line, task).then(resolve, reject) })
      })
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

  function begin<T>(line: Line, task: () => Promise<T>): Promise<T> {
    const running = task()
    const done = () => {
      if (--line.running === 0) next(line)
    }
    running.then(done, done) // before whoever waits for it goes on
    return running
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
    for (const { begin } of group) begin()
  }
}
