import { performance } from 'node:perf_hooks' // docs/decisions/0008, “The globals of Node”
import { CallError } from '../../src/errors.js'
import type { Told } from '../../src/told.js'

export interface CoalesceOptions<Item, Result> {
  /** Items of one key keep their order: they wait for the batch that has the one before. */
  key: (item: Item) => string
  bytes: (item: Item) => number
  /** Commits the batch and answers for each item, in order; an Error fails that item alone. */
  flush: (items: Item[]) => Promise<(Result | Error)[]>
  /** How many batches may be under way at once, when those before them are slow. */
  atOnce: number
  maxItems: number
  maxBytes: number
  /** What may wait; beyond it new items are refused, so that a stalled database does not fill the memory. */
  maxWaitingBytes: number
  /** An item that waited this long is dropped unwritten: its caller is told "timeout". */
  maxWaitMs: number
}

interface Waiting<Item, Result> {
  item: Item
  since: number
  told: Told<Result>
}

interface Batch<Item, Result> {
  all: Waiting<Item, Result>[]
  isSlow: boolean
}

/**
 * Beside a batch that is under way a small one makes both dearer and neither faster: what comes meanwhile is better one batch. One that is no
 * smaller costs no more than later, and the store works on it while the first one waits for the disk. docs/decisions/0008
 */
const WORTH_ITEMS = 64
/** A batch that takes longer, behind a lock or a slow disk, must not hold up items of other keys. */
const PATIENCE_MS = 10

/**
 * Turns concurrent calls into batches without making a lone call wait: the first begins at the end of the current turn of the event loop,
 * and whatever comes while it is under way forms the next one.
 */
export function createCoalescer<Item, Result>(options: CoalesceOptions<Item, Result>): (item: Item, told: Told<Result>) => void {
  const { key, bytes, flush, atOnce, maxItems, maxBytes, maxWaitingBytes, maxWaitMs } = options
  let waiting: Waiting<Item, Result>[] = []
  let waitingBytes = 0
  let isBeginning = false
  /** So many must wait for a batch beside a quick one. */
  let worth = WORTH_ITEMS
  const underWay: Batch<Item, Result>[] = [] // a Set would keep what was in it: docs/decisions/0008

  return (item, told) => {
    if (waitingBytes + bytes(item) > maxWaitingBytes) {
      const overloaded = new CallError('overloaded', 'Too much is waiting for the store. Nothing was done; try again later.')
      return process.nextTick(told, overloaded)
    }
    waitingBytes += bytes(item)
    waiting.push({ item, since: performance.now(), told })
    if (!isBeginning && hasPlace()) {
      isBeginning = true
      setImmediate(begin)
    }
  }

  function hasPlace(): boolean {
    if (underWay.length >= atOnce) return false
    if (waiting.length >= worth) return true
    for (const { isSlow } of underWay) if (!isSlow) return false
    return true
  }

  function begin(): void {
    isBeginning = false
    if (waiting.length === 0 || !hasPlace()) return
    const { all, behind } = nextBatch()
    // What is behind another of its key is not looked through again for each that comes.
    worth = Math.max(WORTH_ITEMS, all.length, 2 * behind)
    if (all.length === 0) return
    void run({ all, isSlow: false })
    begin() // what did not fit
  }

  async function run(batch: Batch<Item, Result>): Promise<void> {
    underWay.push(batch)
    const timer = setTimeout(() => {
      batch.isSlow = true
      begin()
    }, PATIENCE_MS)
    let settle: () => void
    try {
      const results = await flush(batch.all.map(({ item }) => item))
      settle = () => batch.all.forEach(({ told }, i) => tell(told, results[i]!))
    } catch (error) {
      settle = () => batch.all.forEach(({ told }) => tell(told, error as Error))
    }
    clearTimeout(timer)
    underWay.splice(underWay.indexOf(batch), 1)
    begin()
    process.nextTick(settle) // after what it began has left: the store works while these are answered
  }

  /** In the order of arrival, without those that were too long in line, or that stay behind one of their key. */
  function nextBatch(): { all: Waiting<Item, Result>[]; behind: number } {
    const now = performance.now()
    const busy = new Set<string>()
    for (const { all } of underWay) for (const { item } of all) busy.add(key(item))
    const batch: Waiting<Item, Result>[] = []
    const behind: Waiting<Item, Result>[] = []
    let seen = 0
    let size = 0
    while (seen < waiting.length && batch.length < maxItems && (batch.length === 0 || size < maxBytes)) {
      const next = waiting[seen++]!
      const isLate = now - next.since > maxWaitMs
      if (!isLate && busy.size > 0 && busy.has(key(next.item))) {
        behind.push(next)
        continue
      }
      waitingBytes -= bytes(next.item)
      if (isLate) {
        process.nextTick(next.told, new CallError('timeout', 'Waited too long for the store. Nothing was done; try again.'))
        continue
      }
      batch.push(next)
      size += bytes(next.item)
    }
    waiting = seen === waiting.length ? behind : [...behind, ...waiting.slice(seen)]
    return { all: batch, behind: behind.length }
  }
}

/** What one of them makes of its answer, if that is a fault, is not to keep the others of its batch from theirs. */
function tell<Result>(told: Told<Result>, result: Result | Error): void {
  try {
    told(result)
  } catch (error) {
    setImmediate(() => {
      throw error
    })
  }
}
