import { randomUUID } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { percentile } from '../../bench/measure.js'
import { startFragilePostgres } from '../helpers/fragile-postgres.js'
import { startProxy } from '../helpers/proxy.js'
import { CallFailed, newOutcomes, openClient, type Client, type Outcomes } from './client.js'
import type { Ledger } from './ledger.js'
import { addOne, drain, startSender } from './load.js'
import { onlyFull, scenario } from './scenario.js'
import { throughProxy, watch } from './watch.js'

/* More than the service can take, for a while. Its database answers late, so that the machine is fast enough to ask for more. */

const OVERLOAD_MS = 60_000
const TIMES = 3
/** On each way to Postgres and back. */
const WAY_MS = 100
const SOCKETS = 64
const CONNECTIONS = 100 // of each socket
const RECOVERED_MS = 5_000

scenario(`F35: ${TIMES} times the load that it can take`, { skip: onlyFull, allowed: ['overloaded', 'timeout'] }, async (t, world) => {
  const { ledger, outcomes, random } = world
  const postgres = await startFragilePostgres(t)
  world.databaseUrl = postgres.url
  const proxy = await startProxy(postgres)
  t.teardown(() => proxy.close())
  const server = await world.start({ DATABASE_URL: throughProxy(postgres.url, proxy) })
  const groups = Array.from({ length: SOCKETS }, () => Array.from({ length: CONNECTIONS }, () => randomUUID()))
  // Of its own: adds over two sockets at the same time have no order.
  const asked = randomUUID()
  const all = [...groups.flat(), asked]
  ledger.waiting(all)

  // Not by a report of the ledger: over a hundred thousand messages that takes 0.1 s, by which the calls in flight would seem to be late.
  let acknowledged = 0
  const counting: Ledger = {
    ...ledger,
    added(text) {
      acknowledged++
      ledger.added(text)
    },
  }

  /** @returns adds that were acknowledged a second, while `perSecond` were asked for */
  const load = async (perSecond: number, ms: number, own: Outcomes = outcomes, sockets = SOCKETS): Promise<number> => {
    const before = acknowledged
    const common = {
      urls: [server.ws],
      ledger: counting,
      outcomes: own,
      random,
      perSecond: perSecond / sockets,
      bytes: [100, 500] as [number, number],
    }
    const senders = groups.slice(0, sockets).map((connections) => startSender({ ...common, connections }))
    await sleep(ms)
    const served = acknowledged - before
    await Promise.all(senders.map((sender) => sender.stop()))
    return served / (ms / 1_000)
  }
  await load(SOCKETS * CONNECTIONS, 2_000) // until the code is compiled, and the quota of each connection known
  proxy.delay(() => WAY_MS)
  const capacity = await load(1_000_000, 3_000, outcomes, SOCKETS / 4) // each socket as fast as it is answered
  t.same(outcomes.failures, {}, 'that it can take')

  const watcher = watch(server)
  const refused = newOutcomes()
  const client = await openClient(server.ws, refused)
  const asking = ask(ledger, client, asked)
  const goodput = await load(TIMES * capacity, OVERLOAD_MS, refused)
  const refusalsMs = await asking.end()
  const overAt = performance.now()
  const { healthy, healthMs } = await watcher.end()

  let recoveredMs = Infinity
  while (recoveredMs === Infinity && performance.now() - overAt < 2 * RECOVERED_MS) {
    const trying = newOutcomes()
    const triedMs = performance.now() - overAt
    await load(capacity / TIMES, 500, trying)
    if (Object.keys(trying.failures).length === 0) recoveredMs = triedMs
  }
  t.ok(recoveredMs < RECOVERED_MS, `normal again after ${Math.round(recoveredMs)} ms`)
  const after = await load(capacity / TIMES, 3_000)
  t.same(outcomes.failures, {}, 'and it stays so')
  t.ok(after > capacity / TIMES / 2, `${Math.round(after)} a second of ${Math.round(capacity / TIMES)}`)
  t.ok((refused.failures.overloaded ?? 0) > 100, 'it was refused')
  t.ok(percentile(refusalsMs, 0.5) < 100, 'and quickly')
  t.ok(goodput > capacity / 2, `${Math.round(goodput)} a second were served of the ${Math.round(capacity)} that it can`)
  t.ok(healthy && healthMs < 1_000, '/health answers')

  for (const [code, count] of Object.entries(refused.failures)) outcomes.failures[code] = count
  outcomes.slowestErrorMs = Math.max(outcomes.slowestErrorMs, refused.slowestErrorMs)
  outcomes.wrong.push(...refused.wrong)
  client.socket.terminate()
  proxy.heal()
  await drain({ urls: [server.ws], connections: all, ledger, outcomes })
  world.measured(
    `capacity ${Math.round(capacity)}/s; of ${TIMES} times that ${Math.round(goodput)}/s served, refused within ${percentile(refusalsMs, 0.5).toFixed(0)} ms (p50), normal after ${Math.round(recoveredMs)} ms`,
  )
})

/** Adds now and then. `end` returns how long the refusals took, in milliseconds. */
function ask(ledger: Ledger, client: Client, connectionId: string) {
  const refusalsMs: number[] = []
  let ended = false
  const asking = (async () => {
    for (; !ended; await sleep(50)) {
      const started = performance.now()
      await addOne(ledger, client, connectionId).catch((error: unknown) => {
        if (error instanceof CallFailed && error.code === 'overloaded') refusalsMs.push(performance.now() - started)
      })
    }
  })()
  return {
    async end() {
      ended = true
      await asking
      return refusalsMs
    },
  }
}
