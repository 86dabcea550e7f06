import { randomUUID } from 'node:crypto'
import { once } from 'node:events'
import { setTimeout as sleep } from 'node:timers/promises'
import WebSocket from 'ws'
import { cpuOf, memoryOf, percentile } from '../../bench/measure.js'
import { startGenerator } from '../../bench/stand.js'
import { onDatabase } from '../helpers/postgres.js'
import type { RunningServer } from '../helpers/process.js'
import { startProxy } from '../helpers/proxy.js'
import { openClient, type Client } from './client.js'
import { LOAD_MS, onlyFull, scenario, settled, type World } from './scenario.js'
import { addOne, drain } from './load.js'

/* Clients that read slowly, and many of them at once. */

const KIB = 1024
const MIB = 1024 * KIB
const WINDOW_MESSAGES = 256
const SOCKETS = 10_000
const SAMPLES = 2_000
/** Two runs of the same p99 on a machine with few cores differ by more than a fifth of a few milliseconds. */
const NOISE_MS = 5

/** Adds with an answer each, one after the other. @returns the p99 of an addMessage in milliseconds */
async function p99Of({ ledger }: World, client: Client, connectionId: string): Promise<number> {
  const times: number[] = []
  for (let n = 0; n < SAMPLES; n++) {
    const started = performance.now()
    await addOne(ledger, client, connectionId, KIB)
    times.push(performance.now() - started)
  }
  return percentile(times, 0.99)
}

scenario(
  'F14: a consumer that reads 1 KiB/s of 10 MiB',
  { skip: onlyFull, maxRepeats: WINDOW_MESSAGES, allowed: ['lost'] },
  async (t, world) => {
    const { a } = await world.startTwo({ QUOTA_MESSAGES: '0' })
    const { ledger, outcomes } = world
    const [slow, others] = [randomUUID(), randomUUID()]
    ledger.waiting([slow, others]) // the slow one reads for hours; what it did not get is taken in the end
    ledger.touched([slow])
    const client = await openClient(a.ws, outcomes)
    await p99Of(world, client, others) // until the code is compiled
    const before = await p99Of(world, client, others)

    const proxy = await startProxy({ port: Number(new URL(a.url).port) })
    t.teardown(() => proxy.close())
    const reader = new WebSocket(a.ws.replace(/:\d+/, `:${proxy.port}`), { perMessageDeflate: false })
    reader.on('error', () => {})
    await once(reader, 'open')
    reader.send(JSON.stringify({ jsonrpc: '2.0', id: 1, method: 'addLiveSession', params: { connectionId: slow, sessionId: 's' } }))
    await once(reader, 'message')
    proxy.drip(KIB)
    const memoryBefore = memoryOf(a.pid)
    for (let n = 0; n < (10 * MIB) / (32 * KIB); n++) await addOne(ledger, client, slow, 32 * KIB)
    const during = await p99Of(world, client, others)
    const grown = (memoryOf(a.pid) - memoryBefore) / MIB
    const [marked] = await onDatabase(
      world.databaseUrl,
      `SELECT count(*)::int, sum(payload_bytes)::int AS bytes FROM queued_messages WHERE connection_id = '${slow}' AND in_flight_epoch IS NOT NULL`,
    )
    t.ok((marked!.count as number) > 0, 'something was sent')
    t.ok((marked!.count as number) <= WINDOW_MESSAGES, 'at most 256 messages')
    t.ok((marked!.bytes as number) <= MIB, 'and at most 1 MiB are sent and not acked')
    t.ok(during <= before * 1.2 + NOISE_MS, `the p99 of others is ${during.toFixed(1)} ms, before it was ${before.toFixed(1)} ms`)
    reader.terminate()
    client.socket.terminate()
    await settled(async () => (await drain({ urls: [a.ws], connections: [slow, others], ledger, outcomes })) === 0, 5_000)
    world.measured(
      `${((marked!.bytes as number) / KIB).toFixed(0)} KiB sent to it, memory +${grown.toFixed(0)} MiB, p99 of others ${before.toFixed(1)} → ${during.toFixed(1)} ms`,
    )
  },
)

const liveNow = async ({ databaseUrl }: World) =>
  (
    await onDatabase(databaseUrl, 'SELECT count(*)::int FROM live_sessions JOIN instances USING (instance_id) WHERE lease_until > now()')
  )[0]!.count as number

scenario(
  `F15: many sockets reconnect at once`,
  { skip: onlyFull, allowed: ['lost', 'shutting_down'], maxRepeats: 100, withinMs: 60_000 },
  async (t, world) => {
    const settings = { MAX_FAILED_KEYS_PER_MINUTE: '1000000' }
    let server: RunningServer = await world.start(settings)
    const crowd = await startGenerator('bench/load.ts', ['--import', 'tsx'])
    t.teardown(() => crowd.stop())
    await crowd.do('openCrowd', { url: server.ws, sockets: 200, sessions: 1 }) // until the code is compiled
    await crowd.do('closeCrowd', undefined)
    const before = memoryOf(server.pid)
    await crowd.do('openCrowd', { url: server.ws, sockets: SOCKETS, sessions: 1, reconnect: true })
    t.equal(await liveNow(world), SOCKETS)
    const kibEach = (memoryOf(server.pid) - before) / KIB / SOCKETS
    const { connections } = await world.load({ from: [server], to: [server], perSecond: 50, mix: { live: 10, polled: 5, offline: 5 } })
    world.ledger.touched(connections)
    await sleep(LOAD_MS)
    const restart = async (signal: NodeJS.Signals) => {
      const endedAt = Date.now()
      const code = await server.end(signal)
      const endedMs = Date.now() - endedAt
      server = await world.start({ ...settings, PORT: new URL(server.url).port })
      const readyAt = Date.now()
      const { back, lastLiveAt } = await crowd.do('crowdBack', { timeoutMs: 60_000 })
      const backS = (lastLiveAt - readyAt) / 1_000
      t.equal(back, SOCKETS, 'all are back')
      t.ok(backS < 30, `within 30 s: ${backS.toFixed(1)}`)
      await settled(async () => (await liveNow(world)) === SOCKETS + 10, 5_000)
      t.equal(await liveNow(world), SOCKETS + 10)
      return { code, endedMs, backS, cpuS: cpuOf(server.pid) / 1e6 }
    }
    const killed = await restart('SIGKILL')
    await sleep(LOAD_MS / 3)
    const drained = await restart('SIGTERM')
    t.equal(drained.code, 0, `an orderly end, in ${drained.endedMs} ms`)
    // Only where there are many the memory of each shows.
    t.ok(kibEach < 40, `${kibEach.toFixed(1)} KiB each`)
    await sleep(1_000)
    await crowd.do('closeCrowd', undefined)
    world.measured(
      `${SOCKETS} sockets back ${killed.backS.toFixed(1)} s after the service is (${killed.cpuS.toFixed(1)} s of its CPU), ${kibEach.toFixed(1)} KiB each; SIGTERM: ended in ${drained.endedMs} ms, back after ${drained.backS.toFixed(1)} s`,
    )
  },
)
