/**
 * Makes the calls of one caller for one connection take effect in the order of their arrival. A mediator sends
 * removeLiveSession, addLiveSession and getAvailableMessageCount back to back without awaiting any of them, and the
 * last must not overtake the first. Calls for different connections do not wait for each other.
 */
export interface ArrivalOrder {
  /**
   * Runs `task` after every earlier task of `key`, save that neighbours with the same `overlaps` mark run together.
   * A task that failed does not keep the next from running.
   */
  run<T>(key: string, overlaps: string | undefined, task: () => Promise<T>): Promise<T>
}

interface Line {
  /** What the newest group of neighbours waits for. */
  before: Promise<unknown>
  overlaps: string | undefined
  /** The newest group, as far as it is not done. */
  running: Set<Promise<unknown>>
  waiting: number
}

export function createArrivalOrder(): ArrivalOrder {
  const lines = new Map<string, Line>()

  return {
    async run(key, overlaps, task) {
      let line = lines.get(key)
      if (!line) {
        line = { before: Promise.resolve(), overlaps, running: new Set(), waiting: 0 }
        lines.set(key, line)
      } else if (overlaps === undefined || line.overlaps !== overlaps) {
        // Without their results, which would hang on to each other for as long as the line is never empty.
        line.before = Promise.allSettled([line.before, ...line.running]).then(() => undefined)
        line.overlaps = overlaps
        line.running = new Set()
      }
      const { running } = line
      const done = line.before.then(task)
      running.add(done)
      line.waiting++
      try {
        return await done
      } finally {
        running.delete(done)
        if (--line.waiting === 0) lines.delete(key)
      }
    },
  }
}
