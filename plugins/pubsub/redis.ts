import { randomUUID } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { Cluster, Command, Redis, type ClusterOptions, type RedisOptions } from 'ioredis'
import type { Log, PubSub } from '../../src/ports.js'
import { createBusState } from './bus-state.js'
import { createSubscribers } from './subscribers.js'

/**
 * Hints over Redis: a channel for each connectionId. On one Redis plain pub/sub, on a Cluster sharded pub/sub (a plain PUBLISH
 * there goes to every node).
 *
 * Nothing waits for Redis. A publish that fails is lost, and the reconciler makes up for it. A subscription that fails is
 * kept as wanted and asked for again twice a second; ioredis itself renews those it had when a connection comes back.
 */

/**
 * All hints of one turn of the event loop, for connections with NUL between them, which none of them contains. A command of its own for each cost an
 * add a fifth of its CPU, and an argument of its own, a channel's name or JSON for each cost more than one text. docs/decisions/0008
 */
const PUBLISH_ALL = "for connection in string.gmatch(ARGV[2], '%Z+') do redis.call('PUBLISH', ARGV[1] .. connection, '') end"
const BETWEEN = '\0'
// Lua takes them one by one, and Redis does nothing else meanwhile.
const MAX_HINTS = 1_000

// A call is answered within 1.5 s: what Redis has not confirmed by then is asked for again later.
const SUBSCRIBE_TIMEOUT_MS = 500
const RETRY_MS = 500
// A connection can be dead without a word (a black hole, half-open). Each probe goes out and must come back.
const PROBE_MS = 2_000
const MAX_RECONNECT_MS = 1_000

export const redisOptions = {
  lazyConnect: true,
  // A command while Redis is away fails at once and does not fill the memory.
  enableOfflineQueue: false,
  maxRetriesPerRequest: 0,
  autoResendUnfulfilledCommands: false,
  enableAutoPipelining: true,
  connectTimeout: 2_000,
  commandTimeout: PROBE_MS,
  keepAlive: 5_000,
  retryStrategy: (times: number) => Math.min(50 * times, MAX_RECONNECT_MS),
} satisfies RedisOptions

export const clusterOptions = {
  lazyConnect: true,
  enableOfflineQueue: false,
  shardedSubscribers: true,
  enableAutoPipelining: true,
  slotsRefreshTimeout: 2_000,
  slotsRefreshInterval: 5_000,
  clusterRetryStrategy: (times: number) => Math.min(50 * times, MAX_RECONNECT_MS),
} satisfies ClusterOptions

export interface RedisPubSubOptions {
  /** Publishes, and on a Cluster subscribes too. */
  client: Redis | Cluster
  prefix: string
  log: Log
}

export function createRedisPubSub({ client, prefix, log }: RedisPubSubOptions): PubSub {
  const isCluster = client instanceof Cluster
  const subscriber = isCluster ? client : client.duplicate()
  const state = createBusState(isCluster ? 'redis cluster' : 'redis', log)
  const channelOf = (connectionId: string) => prefix + connectionId

  /** Wanted, and not confirmed by Redis in time. */
  const missing = new Set<string>()
  const subscribers = createSubscribers({
    async onFirst(connectionId) {
      const confirmed = await Promise.race([subscribeNow(connectionId), sleep(SUBSCRIBE_TIMEOUT_MS, false, { ref: false })])
      if (!confirmed && subscribers.has(connectionId)) missing.add(connectionId)
    },
    async onLast(connectionId) {
      missing.delete(connectionId)
      await attempt(() => (isCluster ? client.sunsubscribe(channelOf(connectionId)) : subscriber.unsubscribe(channelOf(connectionId))))
    },
  })

  const probe = `${prefix}probe:${randomUUID()}`
  let probeCameBack: (() => void) | undefined
  const onMessage = (channel: string) => {
    if (channel === probe) probeCameBack?.()
    else subscribers.notify(channel.slice(prefix.length))
  }
  subscriber.on(isCluster ? 'smessage' : 'message', onMessage)

  for (const connection of new Set([client, subscriber])) {
    connection.on('error', (err) => state.set(false, err))
    connection.on('close', () => state.set(false))
    connection.connect().catch(() => {}) // tries again by itself
  }

  /** Connections, until the end of this turn of the event loop. */
  const waiting = new Set<string>()
  let mayScript = true
  let closed = false
  const retrying = setInterval(() => void retryMissing(), RETRY_MS)
  const probing = setInterval(() => void probeNow(), PROBE_MS)
  void firstProbe()

  return {
    publish(connectionId) {
      if (isCluster)
        void attempt(() => client.spublish(channelOf(connectionId), '')) // each channel has its own node
      else if (waiting.add(connectionId).size === 1) setImmediate(publishWaiting)
    },
    subscribe: (connectionId, onHint) => subscribers.add(connectionId, onHint),
    isUp: state.isUp,
    async close() {
      closed = true
      clearInterval(retrying)
      clearInterval(probing)
      for (const connection of new Set([client, subscriber])) connection.disconnect()
    },
  }

  function publishWaiting(): void {
    const connectionIds = [...waiting]
    waiting.clear()
    if (connectionIds.length <= MAX_HINTS) return void publishAll(connectionIds)
    for (let from = 0; from < connectionIds.length; from += MAX_HINTS) void publishAll(connectionIds.slice(from, from + MAX_HINTS))
  }

  async function publishAll(connectionIds: string[]): Promise<void> {
    if (connectionIds.length > 1 && mayScript) {
      try {
        // Not client.eval(): that would be pipelined with others of this turn, and there is only this one.
        await client.sendCommand(new Command('eval', [PUBLISH_ALL, '0', prefix, connectionIds.join(BETWEEN)]))
        return
      } catch (err) {
        if (!(err as Error).message.startsWith('NOPERM')) return
        mayScript = false // the ACL user may publish, and that is all there is to it
      }
    }
    for (const connectionId of connectionIds) void attempt(() => client.publish(channelOf(connectionId), ''))
  }

  function subscribeNow(connectionId: string): Promise<boolean> {
    const channel = channelOf(connectionId)
    return attempt(() => (isCluster ? client.ssubscribe(channel) : subscriber.subscribe(channel)))
  }

  /** ioredis also throws at once, while a Cluster does not know all of its slots. @returns whether it worked */
  async function attempt(command: () => Promise<unknown>): Promise<boolean> {
    try {
      await command()
      return true
    } catch {
      return false
    }
  }

  async function retryMissing(): Promise<void> {
    if (missing.size === 0 || !isConnected()) return
    await Promise.all(
      [...missing].slice(0, 1_000).map(async (connectionId) => {
        // What was published while nobody heard it is looked for at once.
        if ((await subscribeNow(connectionId)) && missing.delete(connectionId)) subscribers.notify(connectionId)
      }),
    )
  }

  function isConnected(): boolean {
    return client.status === 'ready' && subscriber.status === 'ready'
  }

  async function firstProbe(): Promise<void> {
    while (!closed && !isConnected()) await sleep(20, undefined, { ref: false })
    await probeNow()
  }

  async function probeNow(): Promise<void> {
    if (closed) return
    if (!isConnected()) return state.set(false)
    try {
      await probeOnce()
      state.set(true)
    } catch (err) {
      if (closed) return
      state.set(false, err)
      // A Cluster replaces the connections of its nodes by itself.
      if (!isCluster) for (const connection of [client, subscriber]) (connection as Redis).disconnect(true)
    }
  }

  /** Out by the publishing connection, back by the subscribing one. */
  async function probeOnce(): Promise<void> {
    const back = new Promise<boolean>((resolve) => (probeCameBack = () => resolve(true)))
    const timeout = sleep(PROBE_MS - 100, false, { ref: false })
    const sent = (async () => {
      await (isCluster ? client.ssubscribe(probe) : subscriber.subscribe(probe))
      await (isCluster ? client.spublish(probe, '') : client.publish(probe, ''))
      return back
    })()
    sent.catch(() => {}) // when the timeout was first
    if (!(await Promise.race([sent, timeout]))) throw new Error('a probe did not come back')
  }
}
