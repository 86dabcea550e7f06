import { CallError } from '../../src/errors.js'

export interface CoalesceOptions<Item, Result> {
  /** Items of one key keep their order: they share a lane, and a lane has one batch under way. */
  key: (item: Item) => string
  bytes: (item: Item) => number
  /** Commits the batch and answers for each item, in order; an Error fails that item alone. */
  flush: (items: Item[]) => Promise<(Result | Error)[]>
  /** How many batches may be under way at once, when those before them are slow. */
  lanes: number
  maxItems: number
  maxBytes: number
  /** What may wait; beyond it new items are refused, so that a stalled database does not fill the memory. */
  maxWaitingBytes: number
  /** An item that waited this long is dropped unwritten: its caller has been told "timeout". */
  maxWaitMs: number
}

interface Waiting<Item, Result> {
  item: Item
  since: number
  resolve: (result: Result) => void
  reject: (error: unknown) => void
}

/**
 * A second batch beside the first makes both dearer and neither faster, as long as the store is quick: what comes meanwhile is better one
 * batch. One that takes longer, behind a lock or a slow disk, must not hold up those of the other lanes. docs/decisions/0008
 */
const PATIENCE_MS = 10

/**
 * Turns concurrent calls into batches without making a lone call wait: a lane that is idle starts at the end of the
 * current turn of the event loop, and whatever comes while a batch is under way forms the next one.
 */
export function createCoalescer<Item, Result>(options: CoalesceOptions<Item, Result>): (item: Item) => Promise<Result> {
  const { key, bytes, flush, maxItems, maxBytes, maxWaitingBytes, maxWaitMs } = options
  const lanes = Array.from({ length: options.lanes }, () => ({ waiting: [] as Waiting<Item, Result>[], busy: false }))
  let waitingBytes = 0
  let running = 0
  const inLine: (() => void)[] = []

  return (item) =>
    new Promise((resolve, reject) => {
      if (waitingBytes + bytes(item) > maxWaitingBytes) {
        reject(new CallError('overloaded', 'Too much is waiting for the store. Nothing was done; try again later.'))
        return
      }
      waitingBytes += bytes(item)
      const lane = lanes[hash(key(item)) % lanes.length]!
      lane.waiting.push({ item, since: performance.now(), resolve, reject })
      if (!lane.busy) {
        lane.busy = true
        setImmediate(() => void work(lane))
      }
    })

  async function work(lane: (typeof lanes)[number]): Promise<void> {
    while (lane.waiting.length > 0) {
      if (running > 0) await turn()
      else running++
      const batch = nextBatch(lane.waiting)
      try {
        const results = batch.length === 0 ? [] : await flush(batch.map(({ item }) => item))
        batch.forEach(({ resolve, reject }, i) => {
          const result = results[i]
          if (result instanceof Error) reject(result)
          else resolve(result as Result)
        })
      } catch (error) {
        for (const { reject } of batch) reject(error)
      }
      running--
      inLine.shift()?.()
    }
    lane.busy = false
  }

  /** Until a batch of another lane has ended, or takes long. */
  function turn(): Promise<void> {
    return new Promise((resolve) => {
      const go = () => {
        clearTimeout(timer)
        const place = inLine.indexOf(go)
        if (place >= 0) inLine.splice(place, 1)
        running++
        resolve()
      }
      const timer = setTimeout(go, PATIENCE_MS)
      inLine.push(go)
    })
  }

  function nextBatch(waiting: Waiting<Item, Result>[]): Waiting<Item, Result>[] {
    const now = performance.now()
    const batch: Waiting<Item, Result>[] = []
    let taken = 0
    let size = 0
    while (taken < waiting.length && batch.length < maxItems && (batch.length === 0 || size < maxBytes)) {
      const next = waiting[taken++]!
      waitingBytes -= bytes(next.item)
      if (now - next.since > maxWaitMs) {
        next.reject(new CallError('timeout', 'Waited too long for the store. Nothing was done; try again.'))
        continue
      }
      batch.push(next)
      size += bytes(next.item)
    }
    waiting.splice(0, taken)
    return batch
  }
}

function hash(text: string): number {
  let value = 0
  for (let i = 0; i < text.length; i++) value = (Math.imul(value, 31) + text.charCodeAt(i)) | 0
  return value >>> 0
}
