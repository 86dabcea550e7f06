/**
 * Makes the calls of one caller for one connection take effect in the order of their arrival. A mediator sends
 * removeLiveSession, addLiveSession and getAvailableMessageCount back to back without awaiting any of them, and the
 * last must not overtake the first. Calls for different connections do not wait for each other.
 */
export interface ArrivalOrder {
  /** Begins `task` when every earlier task of `key` has left, save that neighbours with the same `overlaps` mark run together. */
  run(key: string, overlaps: string | undefined, task: Task): void
}

// Objects, and neither promises nor closures: this is on the path of every message. docs/decisions/0008
export interface Task {
  /** It must leave its place however it ends, before whoever waits for it goes on and not before this returns. It must not throw. */
  begin(place: Place): void
}

export interface Place {
  leave(): void
}

/** So many lines in which nobody is are kept: to make and to lose one for each call costs more than the rest of it. */
const MAX_EMPTY_LINES = 1_000

export function createArrivalOrder(): ArrivalOrder {
  const lines = new Map<string, Line>()
  let mostLines = MAX_EMPTY_LINES

  return {
    run(key, overlaps, task) {
      lineOf(key).join(overlaps, task)
    },
  }

  function lineOf(key: string): Line {
    let line = lines.get(key)
    if (line) return line
    if (lines.size >= mostLines) {
      for (const [one, { running }] of lines) if (running === 0) lines.delete(one)
      mostLines = 2 * lines.size + MAX_EMPTY_LINES // so that those in use are not walked for each new one
    }
    line = new Line()
    lines.set(key, line)
    return line
  }
}

class Line implements Place {
  /** The tasks that run now, and their mark. */
  running = 0
  private overlaps: string | undefined
  /** In the order of their arrival; made when somebody has to wait. */
  private waiting: { overlaps: string | undefined; task: Task }[] | undefined

  // A lone call, which most are, waits for nobody: it begins at once.
  join(overlaps: string | undefined, task: Task): void {
    if (this.running === 0 || (!this.waiting && overlaps !== undefined && this.overlaps === overlaps)) {
      this.overlaps = overlaps
      this.running++
      task.begin(this)
    } else {
      ;(this.waiting ??= []).push({ overlaps, task })
    }
  }

  leave(): void {
    if (--this.running === 0 && this.waiting) this.next(this.waiting)
  }

  /** Lets the next one begin, and those behind it that run together with it. */
  private next(waiting: NonNullable<Line['waiting']>): void {
    const { overlaps } = waiting[0]!
    this.overlaps = overlaps
    const other = overlaps === undefined ? 1 : waiting.findIndex((one) => one.overlaps !== overlaps)
    const group = waiting.splice(0, other < 0 ? waiting.length : other)
    if (waiting.length === 0) this.waiting = undefined
    this.running = group.length
    for (const { task } of group) task.begin(this)
  }
}
