import { randomUUID } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { onDatabase } from '../helpers/postgres.js'
import { startServer, type RunningServer, type StartOptions } from '../helpers/process.js'
import { createRandom, type Random } from '../helpers/random.js'
import { testDatabase } from '../helpers/service.js'
import { newOutcomes, type Outcomes } from './client.js'
import { createLedger, type Ledger } from './ledger.js'
import { drain, startMediator, startPoller, startSender, type Mediator } from './load.js'
import { violations, type Bounds, type Remains, type Violations } from './rules.js'

/** Real processes on one Postgres, a load on them, and in the end one look at what became of everything. */

export const FULL = process.env.FAULTS === 'full'

/** Connections with a live session, polled, and left alone. */
const MIX = FULL ? { live: 100, polled: 50, offline: 50 } : { live: 40, polled: 20, offline: 20 }
const PER_SECOND = 200
const SETTLE_MS = 5_000

/** Errors in a log that say what the fault was. */
const EXPECTED_IN_LOG = [/^housekeeping failed/]

export interface Load {
  mediator: Mediator
  live: string[]
  connections: string[]
}

export interface World {
  ledger: Ledger
  outcomes: Outcomes
  random: Random
  /** Of the store, without anything between. */
  databaseUrl: string
  servers: RunningServer[]
  start(settings?: Record<string, string>, options?: StartOptions): Promise<RunningServer>
  startTwo(settings?: Record<string, string>, ofB?: Record<string, string>): Promise<{ a: RunningServer; b: RunningServer }>
  /** Senders at `from`; mediators and pollers at `to`, the next of these when one is lost. */
  load(options: { from: RunningServer[]; to: RunningServer[]; perSecond?: number; mix?: typeof MIX }): Promise<Load>
  /** Stands in the results. */
  measured(fact: string): void
  /** Ends the load, takes and acks what is left, and says what rules were broken. */
  finish(bounds: Bounds): Promise<Violations>
}

interface Teardown {
  teardown(end: () => unknown): void
}

export async function createWorld(t: Teardown, name: string, measured: (fact: string) => void = () => {}): Promise<World> {
  const ledger = createLedger()
  const outcomes = newOutcomes()
  const random = createRandom(name)
  const ended = new Set<RunningServer>()
  const all: string[] = []
  const senders: { stop(): Promise<void> }[] = []
  const receivers: { stop(): Promise<void> }[] = []
  t.teardown(() => Promise.all([...senders, ...receivers].map((part) => part.stop())))

  const world: World = {
    ...{ ledger, outcomes, random, measured, servers: [], databaseUrl: await testDatabase(t) },

    async start(settings = {}, options = {}) {
      const server = await startServer({ DATABASE_URL: world.databaseUrl, ...settings }, options)
      t.teardown(() => server.end('SIGKILL'))
      world.servers.push(server)
      const { end } = server
      server.end = (signal) => {
        ended.add(server)
        return end(signal)
      }
      return server
    },

    async startTwo(settings = {}, ofB = {}) {
      const [a, b] = await Promise.all([world.start(settings), world.start({ ...settings, ...ofB })])
      return { a, b }
    },

    async load({ from, to, perSecond = PER_SECOND, mix = MIX }) {
      const [live, polled, offline] = [mix.live, mix.polled, mix.offline].map((count) => Array.from({ length: count }, () => randomUUID()))
      const connections = [...live!, ...polled!, ...offline!]
      all.push(...connections)
      ledger.waiting([...polled!, ...offline!])
      const common = { ledger, outcomes, random }
      const mediator = startMediator({ ...common, urls: to.map(({ ws }) => ws), connections: live! })
      receivers.push(mediator, startPoller({ ...common, urls: to.map(({ ws }) => ws), connections: polled! }))
      await mediator.ready
      senders.push(startSender({ ...common, urls: from.map(({ ws }) => ws), connections, perSecond }))
      return { mediator, live: live!, connections }
    },

    async finish(bounds) {
      await Promise.all(senders.splice(0).map((sender) => sender.stop()))
      const { withinMs = 2_000 } = bounds
      await settled(() => ledger.outstanding().length === 0, withinMs)
      await Promise.all(receivers.splice(0).map((receiver) => receiver.stop()))
      const living = world.servers.filter((server) => !ended.has(server))
      const counted = await drain({ urls: living.map(({ ws }) => ws), connections: all, ledger, outcomes })
      const remains = await look(world.databaseUrl, living, counted)
      return violations(ledger.report(), outcomes, remains, bounds)
    },
  }
  return world
}

async function look(databaseUrl: string, living: readonly RunningServer[], counted: number): Promise<Remains> {
  let rows = 0
  let gauges: Record<string, number> = {}
  // An add whose answer was lost may be stored a moment later, and a socket that closed is noticed a moment later.
  await settled(async () => {
    rows = Number((await onDatabase(databaseUrl, 'SELECT count(*) FROM queued_messages'))[0]!.count)
    gauges = Object.assign({}, ...(await Promise.all(living.map(gaugesOf)))) as Record<string, number>
    return rows === 0 && Object.keys(gauges).length === 0
  }, SETTLE_MS)
  const complaints = living.flatMap(({ child, log, url }) => [
    ...(child.exitCode !== null || child.signalCode !== null ? [`${url} ended by itself`] : []),
    ...log
      .filter(({ level, msg }) => level >= 50 && !EXPECTED_IN_LOG.some((expected) => expected.test(msg)))
      .map(({ msg }) => `${url} logged: ${msg}`),
  ])
  return { rows, counted, gauges, complaints }
}

/** @returns those that are not 0 */
async function gaugesOf({ url }: RunningServer): Promise<Record<string, number>> {
  const text = await (await fetch(`${url}/metrics`)).text()
  const values = [...text.matchAll(/^(mpr_calls_in_flight|mpr_live_sessions|mpr_sockets) (\d+)$/gm)].map(([, name, value]) => [
    `${name} of ${url}`,
    Number(value),
  ])
  if (values.length !== 3) return { [`gauges of ${url} that were found`]: values.length }
  return Object.fromEntries(values.filter(([, value]) => value !== 0)) as Record<string, number>
}

/** Waits until it is so. @returns whether it was, in time */
export async function settled(test: () => boolean | Promise<boolean>, withinMs: number): Promise<boolean> {
  for (const deadline = performance.now() + withinMs; performance.now() < deadline; await sleep(20)) if (await test()) return true
  return test()
}
