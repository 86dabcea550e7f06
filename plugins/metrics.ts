import fp from 'fastify-plugin'
import { collectDefaultMetrics, Counter, Gauge, Registry } from 'prom-client'
import type { ErrorName } from '../src/errors.js'
import { createHistogram } from './histogram.js'

/**
 * What Prometheus is told. A label is a name out of this repository (a method, an outcome), never a connectionId, a DID, a token or
 * a key: those are secrets, and without number.
 *
 * A plugin that counts something of its own makes the metric with `registers: [app.metrics.registry]`, or with a `collect` that is
 * asked when Prometheus asks. What costs a query is sampled, see below.
 */
export interface Metrics {
  readonly registry: Registry
  /** On the path of every call. */
  observeCall(method: string, outcome: 'ok' | ErrorName, ms: number): void
  readonly messagesExpired: Counter
  text(): Promise<string>
}

declare module 'fastify' {
  interface FastifyInstance {
    metrics: Metrics
  }
}

const LATENCY_BUCKETS_S = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 1.5]
// However often Prometheus asks, and however many of them: the store is not asked more often.
const SAMPLE_MS = 15_000

/** Also where pushes are off: a panel without a series is taken for a fault. */
const PUSH_OUTCOMES = ['accepted', 'dead', 'rejected', 'failed', 'gave_up', 'cancelled'] as const

/**
 * Three facts about the whole queue, none of which reads it: the number of rows as the statistics of Postgres have it, the
 * size of the table's files, and the first entry of queued_messages_accepted_at. An exact count would take seconds on a deep queue.
 * After a crash the statistics are empty until the next ANALYZE, and the estimate of the last one stands in.
 */
const SAMPLE = `
  SELECT coalesce(sum(coalesce(nullif(s.n_live_tup, 0), greatest(c.reltuples, 0)::bigint)), 0)::float8,
    coalesce(sum(pg_table_size(c.oid)), 0)::float8,
    (SELECT extract(epoch FROM now() - accepted_at)::float8 FROM queued_messages ORDER BY accepted_at LIMIT 1)
  FROM pg_class c LEFT JOIN pg_stat_user_tables s ON s.relid = c.oid
  WHERE c.oid IN (SELECT 'queued_messages'::regclass UNION ALL SELECT inhrelid FROM pg_inherits WHERE inhparent = 'queued_messages'::regclass)`

/** Decorates `metrics`. First of the plugins, because the others count with it; what it reads of them it reads when asked. */
export default fp(
  async (app) => {
    const registry = new Registry()
    const registers = [registry]
    collectDefaultMetrics({ register: registry }) // the process: CPU, memory, file descriptors, event loop lag, garbage collection

    const seriesOf = createHistogram<'method' | 'outcome'>(registry, {
      name: 'mpr_call_duration_seconds',
      help: 'Calls by method and outcome: ok, or the code of the error',
      buckets: LATENCY_BUCKETS_S,
    })
    const series = new Map<string, Map<string, (seconds: number) => void>>()
    const messagesExpired = new Counter({
      name: 'mpr_messages_expired_total',
      help: 'Messages past their time that were deleted',
      registers,
    })
    const quotaRefusals = new Counter({
      name: 'mpr_quota_refusals_total',
      help: 'Messages refused because their queue was full',
      registers,
    })

    gauge('mpr_calls_in_flight', 'Calls that run now', () => app.pickup.calls.inFlight())
    gauge('mpr_sockets', 'Open WebSockets', () => app.websocketServer.clients.size)
    gauge('mpr_live_sessions', 'Live sessions of this instance', () => app.pickup.liveSessions.stats().sessions)
    counter('mpr_messages_rescued_total', 'Messages delivered that no hint had brought', () => app.pickup.liveSessions.stats().rescued)
    counter(
      'mpr_leases_expired_total',
      'Messages delivered once more, because they were not removed before their lease ran out',
      () => app.pickup.liveSessions.stats().leasesExpired,
    )
    gauge('mpr_pubsub_up', 'Whether hints of other instances arrive: 1 or 0', () => Number(app.pubsub.isUp()))
    const pushes = new Counter({
      name: 'mpr_pushes_total',
      help: 'Pushes by what came of them; failed ones are tried again, cancelled ones were not needed any more',
      labelNames: ['outcome'] as const,
      registers,
      collect() {
        pushes.reset()
        const counts = app.pickup.push?.counts()
        for (const outcome of PUSH_OUTCOMES) pushes.inc({ outcome }, counts?.[outcome] ?? 0)
      },
    })
    const pool = new Gauge({
      name: 'mpr_database_pool',
      help: 'Connections to Postgres (busy, among them up to two kept for the next statement; idle) and statements that wait for one (waiting)',
      labelNames: ['state'] as const,
      registers,
      collect() {
        const { totalCount, idleCount, waitingCount } = app.pg.pool
        pool.set({ state: 'busy' }, totalCount - idleCount)
        pool.set({ state: 'idle' }, idleCount)
        pool.set({ state: 'waiting' }, waitingCount)
      },
    })

    const sample = createSampler(() => app.pg.pool.query<[number, number, number | null]>({ text: SAMPLE, rowMode: 'array' } as never))
    sampled('mpr_store_up', 'Whether the store answered when it was last asked: 1 or 0', (row) => (row ? 1 : 0))
    sampled(
      'mpr_queue_messages',
      'Messages in the store, estimated; the same at every instance',
      (row) => row && (row[2] === null ? 0 : row[0]),
    )
    sampled('mpr_queue_bytes', 'Bytes of the queue on the disk of the store; the same at every instance', (row) => row?.[1])
    sampled('mpr_queue_oldest_age_seconds', 'Age of the oldest message; the same at every instance', (row) => row && (row[2] ?? 0))

    app.decorate('metrics', { registry, observeCall, messagesExpired, text: () => registry.metrics() })
    app.addHook('onClose', async () => registry.clear())

    function observeCall(method: string, outcome: 'ok' | ErrorName, ms: number): void {
      let ofMethod = series.get(method)
      if (!ofMethod) series.set(method, (ofMethod = new Map<string, (seconds: number) => void>()))
      let observe = ofMethod.get(outcome)
      if (!observe) ofMethod.set(outcome, (observe = seriesOf({ method, outcome })))
      observe(ms / 1_000)
      if (outcome === 'quota_exceeded') quotaRefusals.inc()
    }

    function gauge(name: string, help: string, read: () => number): void {
      const metric: Gauge = new Gauge({ name, help, registers, collect: () => metric.set(read()) })
    }

    function counter(name: string, help: string, read: () => number): void {
      const metric: Counter = new Counter({
        name,
        help,
        registers,
        collect() {
          metric.reset()
          metric.inc(read())
        },
      })
    }

    /** `undefined` leaves the metric out, so that nobody takes an old figure for a fresh one. */
    function sampled(name: string, help: string, read: (row: [number, number, number | null] | undefined) => number | undefined): void {
      const metric: Gauge = new Gauge({
        name,
        help,
        registers,
        async collect() {
          const value = read(await sample())
          if (value === undefined) metric.remove()
          else metric.set(value)
        },
      })
    }
  },
  { name: 'metrics' },
)

/** Asks when it is asked, once for everybody and for SAMPLE_MS. @returns the row, or undefined when there was no answer */
function createSampler<Row>(ask: () => Promise<{ rows: Row[] }>): () => Promise<Row | undefined> {
  let last: Promise<Row | undefined> | undefined
  let askedAt = -Infinity
  return () => {
    if (last && performance.now() - askedAt < SAMPLE_MS) return last
    askedAt = performance.now()
    last = ask().then(
      ({ rows }) => rows[0],
      () => undefined, // the calls say what is wrong with the store; here it is `mpr_store_up 0`
    )
    return last
  }
}
