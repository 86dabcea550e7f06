import { randomUUID } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import t, { type Test } from 'tap'
import type { RunningServer } from '../helpers/process.js'
import { startProxy } from '../helpers/proxy.js'
import { DID } from '../helpers/service.js'
import { openClient } from './client.js'
import type { Bounds, Rule } from './rules.js'
import { createWorld, onlyFull, settled, type World } from './scenario.js'
import { drain } from './load.js'

/*
 * The check that all scenarios share is itself checked: it must find the fault of services that are broken on purpose, by the rule
 * that they break. `npm run faults` also holds the same damage against the service as it is, which must stand it.
 */

const MIX = { live: 20, polled: 0, offline: 0 }
const LOAD_MS = 1_500
const CUTS = 3

type Start = () => Promise<RunningServer>

interface Case {
  broken: string
  /** At least one of these must find it. */
  by: Rule[]
  bounds: Bounds
  damage(world: World, start: Start, t: Test): Promise<void>
}

const cases: Case[] = [
  {
    broken: 'answers before the commit',
    by: ['A1'],
    bounds: { withinMs: 7_000, allowed: ['lost'] },
    async damage(world, start) {
      const [a, b] = [await start(), await start()]
      await world.load({ from: [a], to: [b], mix: MIX })
      await sleep(LOAD_MS)
      await a.end('SIGKILL')
    },
  },
  {
    broken: 'drops publishes and has no reconciler',
    by: ['A7'],
    bounds: { withinMs: 7_000 },
    async damage(world, start) {
      const [a, b] = [await start(), await start()]
      await world.load({ from: [a], to: [b], mix: MIX })
      await sleep(LOAD_MS)
    },
  },
  {
    broken: 'lets a late remove end the session of another',
    by: ['A7'],
    bounds: { withinMs: 2_000 },
    async damage(world, start) {
      const [a, b] = [await start(), await start()]
      await displaceAndAdd(world, a, b)
    },
  },
  {
    broken: 'keeps in flight what an ended session had',
    by: ['A1', 'A6'],
    bounds: { withinMs: 7_000, maxRepeats: 300, allowed: ['lost'] },
    async damage(world, start, t) {
      const [a, b] = [await start(), await start()] // what is left is drained at the first, which forgot it
      const proxy = await startProxy({ port: Number(new URL(a.url).port) })
      t.teardown(() => proxy.close())
      const { connections } = await world.load({ from: [b], to: [{ ...a, ws: a.ws.replace(/:\d+/, `:${proxy.port}`) }], mix: MIX })
      world.ledger.touched(connections)
      for (let cut = 0; cut < CUTS; cut++) {
        await sleep(LOAD_MS / CUTS)
        proxy.cut()
        proxy.heal()
      }
      await sleep(LOAD_MS / CUTS)
    },
  },
]

/** A wallet moves from one mediator to another, whose session is there when the former one removes its own. */
async function displaceAndAdd({ ledger, outcomes }: World, a: RunningServer, b: RunningServer): Promise<void> {
  const former = await openClient(a.ws, outcomes)
  const acked: Promise<void>[] = []
  const owner = await openClient(b.ws, outcomes, (method, { connectionId, messages }) => {
    if (method !== 'messagesReceived') return
    const texts = messages.map((message: any) => message.encryptedMessage.text)
    for (const text of texts) ledger.received(connectionId, text, 'live')
    acked.push(
      owner.call('removeMessages', { connectionId, messageIds: messages.map(({ id }: any) => id) }).then(() => ledger.acked(texts)),
    )
  })
  const wallets = Array.from({ length: 5 }, () => randomUUID())
  for (const connectionId of wallets) {
    await former.call('addLiveSession', { connectionId, sessionId: 'a' })
    await owner.call('addLiveSession', { connectionId, sessionId: 'b' })
    await former.call('removeLiveSession', { connectionId })
    const text = ledger.adding(connectionId)
    await former.call('addMessage', { connectionId, recipientDids: [DID], payload: { text } })
    ledger.added(text)
  }
  await settled(() => ledger.outstanding().length === 0, 3_000)
  await Promise.all(acked)
  await drain({ urls: [a.ws], connections: wallets, ledger, outcomes })
  for (const { socket } of [former, owner]) socket.terminate()
}

for (const { broken, by, bounds, damage } of cases) {
  const run = async (t: Test, variant: string) => {
    const world = await createWorld(t, broken)
    const start = () => world.start({ BROKEN: variant, LOG_LEVEL: 'info' }, { args: ['--import', 'tsx', 'test/faults/broken-server.ts'] })
    await damage(world, start, t)
    return world.finish(bounds)
  }
  t.test(`a service that ${broken} is caught`, async (t) => {
    const violations = await run(t, broken)
    t.comment(JSON.stringify(Object.fromEntries(Object.entries(violations).map(([rule, found]) => [rule, found.slice(0, 3)]))))
    t.ok(
      by.some((rule) => violations[rule].length > 0),
      `by ${by.join(' or ')}`,
    )
  })
  t.test(`the same damage to a sound service is not called a fault (${broken})`, { skip: onlyFull }, async (t) => {
    for (const [rule, found] of Object.entries(await run(t, 'sound'))) t.same(found, [], rule)
  })
}
