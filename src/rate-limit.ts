import type { Clock } from './ports.js'

export interface RateLimit {
  /** Whether this client may do one more thing now. */
  take(client: string): boolean
}

interface Bucket {
  tokens: number
  at: number
}

// Buckets that are full again say no more than no bucket, so they can go.
const SWEEP_AT = 10_000

/** A token bucket per client that holds one second's worth: bursts up to that pass, and on average no more. 0 = no limit. */
export function createRateLimit({ perSecond, now }: { perSecond: number; now: Clock }): RateLimit {
  if (perSecond === 0) return { take: () => true }
  const buckets = new Map<string, Bucket>()

  return {
    take(client) {
      const at = now()
      let bucket = buckets.get(client)
      if (!bucket) {
        if (buckets.size >= SWEEP_AT) sweep(at)
        bucket = { tokens: perSecond, at }
        buckets.set(client, bucket)
      }
      bucket.tokens = filled(bucket, at)
      bucket.at = at
      if (bucket.tokens < 1) return false
      bucket.tokens--
      return true
    },
  }

  function filled({ tokens, at }: Bucket, now: number): number {
    return Math.min(perSecond, tokens + ((now - at) / 1_000) * perSecond)
  }

  function sweep(now: number): void {
    for (const [client, bucket] of buckets) if (filled(bucket, now) >= perSecond) buckets.delete(client)
  }
}
