import { setTimeout as sleep } from 'node:timers/promises'
import { DidCommMediatorPickupStrategy as Strategy, type DidCommQueueTransportRepository } from '@credo-ts/didcomm'
import pg from 'pg'
import t, { type Test } from 'tap'
import { createMessagePickupQueue } from '../../packages/client/src/credo.js'
import {
  befriend,
  listen,
  newIdentity,
  startBalancer,
  startMediator,
  startSender,
  startWallet,
  type Mediator,
} from '../helpers/credo-agents.js'
import { startServer } from '../helpers/process.js'
import { testDatabase } from '../helpers/service.js'

/*
 * Real Credo agents at both ends (credo-agents.ts): a sender, wallets, and two instances of their mediator that share the queue
 * of two instances of the service, which are processes of their own. The sender's mediator is B, the wallets' is A. With 200
 * messages offline and 200 in a burst: CREDO_MESSAGES=200, or `npm run faults`.
 */
const MESSAGES = Number(process.env.CREDO_MESSAGES ?? (process.env.FAULTS === 'full' ? 200 : 60))

t.setTimeout(170_000)
const DATABASE_URL = await testDatabase(t)
const start = async () => {
  const server = await startServer({ DATABASE_URL, LOG_LEVEL: 'info' })
  t.teardown(() => server.end('SIGKILL'))
  return server
}
const servers = await Promise.all([start(), start()])
const balancer = await startBalancer(t)
const identity = newIdentity()
const [a, b] = [
  await startMediator(t, { identity, balancer, urls: [servers[0].ws, servers[1].ws], options: { callTimeoutMs: 5_000 } }),
  await startMediator(t, { identity, balancer, urls: [servers[1].ws, servers[0].ws], options: { callTimeoutMs: 5_000 } }),
]
const sender = await startSender(t)

/** A wallet at that mediator, connected with the sender, whose messages come in by mediator B. It picks nothing up yet. */
async function startPair(t: Test, mediator: Mediator) {
  balancer.prefer(mediator.port)
  const wallet = await startWallet(t, mediator)
  const got = listen(wallet)
  // What a wallet of Credo refuses it tells its mediator, and then it waits: nothing but "0 came" would be seen here.
  wallet.events.on(
    'DidCommMessageSent',
    ({ payload }: { payload: { message: { message: { type: string; description?: { en: string } } } } }) => {
      const { type, description } = payload.message.message
      if (type.includes('problem-report')) t.fail(`the wallet reports a problem: ${description?.en}`)
    },
  )
  const { connectionId: mediatorId } = await wallet.didcomm.mediationRecipient.findDefaultMediator()
  const pickUp = (protocolVersion: 'v1' | 'v2') =>
    wallet.didcomm.messagePickup.pickupMessages({
      connectionId: mediatorId,
      protocolVersion,
      batchSize: 10,
      awaitCompletion: true,
      awaitCompletionTimeoutMs: 60_000,
    })
  /** The mediator's answer to going live or not has been dealt with. */
  const status = (liveDelivery: boolean) =>
    new Promise<void>((resolve) =>
      wallet.events.on('DidCommMessageProcessed', ({ payload: { message } }: { payload: { message: { liveDelivery?: boolean } } }) => {
        if (message.liveDelivery === liveDelivery) resolve()
      }),
    )
  const transports = (): { start(context: unknown): Promise<void>; stop(): Promise<void> }[] => wallet.didcomm.outboundTransports
  const goLive = async () => {
    const told = status(true)
    await pickUp('v2') // with a time for it that suits a busy machine; what follows does it again, with 10 s
    await wallet.didcomm.mediationRecipient.initiateMessagePickup(undefined, Strategy.PickUpV2LiveMode)
    // Live once its mediator knows. What came before that waits to be taken, and what comes after may overtake it.
    await told
    await pickUp('v2')
  }
  await goLive()
  balancer.prefer(b.port)
  const connectionId = await befriend(sender, wallet)
  while (!(await wallet.didcomm.connections.getAll()).every(({ state }: { state: string }) => state === 'completed')) await sleep(20)
  while ((await queued()) > 0) await sleep(20)
  let sent = 0
  return {
    wallet,
    got,
    goLive,
    /** @returns what ends it */
    poll(protocolVersion: 'v1' | 'v2') {
      let isOver = false
      const polling = (async () => {
        while (!isOver) {
          // Credo's own loop does not wait for the end of one pickup before it begins the next.
          await pickUp(protocolVersion)
          await sleep(100)
        }
      })()
      return () => ((isOver = true), polling)
    },
    /** Its socket is closed and it opens no other: what it was about to ask is not asked. */
    async goOffline() {
      await wallet.didcomm.mediationRecipient.stopMessagePickup()
      await Promise.all(transports().map((transport) => transport.stop()))
      while ((await liveSessions()) > 0) await sleep(20)
    },
    comeBack: () => Promise.all(transports().map((transport) => transport.start(wallet.context))),
    /** One after the other, each once it was accepted. */
    async send(count: number, everySoOften: (n: number) => unknown = () => {}) {
      for (let n = 0; n < count; n++) {
        sent++
        // Whoever sends to a mediator that is being killed sends again.
        for (let tries = 1; ; tries++) {
          try {
            await sender.didcomm.basicMessages.sendMessage(connectionId, `message ${sent}`)
            break
          } catch (error) {
            if (tries === 20) throw error
            await sleep(100)
          }
        }
        await everySoOften(n)
      }
    },
    sentAll: () => Array.from({ length: sent }, (_, i) => `message ${i + 1}`),
    queued,
  }
}

const queued = () => count('SELECT count(*)::int AS count FROM queued_messages')
const liveSessions = () => count('SELECT count(*)::int AS count FROM live_sessions')

async function count(query: string): Promise<number> {
  const client = new pg.Client(DATABASE_URL)
  await client.connect()
  const { rows } = await client.query<{ count: number }>(query)
  await client.end()
  return rows[0]!.count
}

/** The last ack is on its way when the last message has arrived. */
async function becomesEmpty(queued: () => Promise<number>): Promise<number> {
  let left = await queued()
  for (const deadline = Date.now() + 10_000; left > 0 && Date.now() < deadline; left = await queued()) await sleep(50)
  return left
}

t.test("the adapter is Credo's DidCommQueueTransportRepository", async (t) => {
  const repository: DidCommQueueTransportRepository = createMessagePickupQueue({ url: 'ws://127.0.0.1:1' })
  t.ok(repository)
})

for (const way of ['v1', 'v2', 'live'] as const) {
  t.test(`pickup ${way}: ${MESSAGES} messages while offline and ${MESSAGES} in a burst all arrive, in order, once`, async (t) => {
    const { got, goLive, goOffline, comeBack, poll, send, sentAll } = await startPair(t, a)
    await goOffline()
    await send(MESSAGES)
    t.equal(await queued(), MESSAGES)
    await comeBack()
    const stop = way === 'live' ? (await goLive(), goOffline) : poll(way)
    await got.until(({ length }) => length >= MESSAGES, 60_000)
    await send(MESSAGES)
    await got.until(({ length }) => length >= 2 * MESSAGES, 60_000)
    t.equal(await becomesEmpty(queued), 0)
    await stop()
    t.same(got.contents, sentAll())
  })
}

const survivor = await startMediator(t, { identity, balancer, urls: [servers[0].ws, servers[1].ws], options: { callTimeoutMs: 5_000 } })

for (const [what, mediator, kill] of [
  ["the wallet's mediator instance", a, () => a.kill()],
  ["the wallet's service instance", survivor, () => servers[0].end('SIGKILL')],
] as const) {
  t.test(`${what} is killed in the middle of a burst: all arrive`, async (t) => {
    const { got, send, sentAll, goOffline } = await startPair(t, mediator)
    await send(MESSAGES, (n) => n === MESSAGES / 2 && kill())
    await got.until((contents) => new Set(contents).size === MESSAGES, 60_000)
    t.equal(await becomesEmpty(queued), 0)
    t.same([...new Set(got.contents)].sort(), sentAll().sort())
    t.comment(`${got.contents.length - MESSAGES} came twice`)
    await goOffline()
  })
}
