import { monitorEventLoopDelay } from 'node:perf_hooks'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { createClient } from '../../packages/client/src/index.js'
import { createLedger } from '../faults/ledger.js'
import { startProxy } from '../helpers/proxy.js'
import { mulberry32 } from '../helpers/random.js'
import { DID, newConnectionId, startService } from '../helpers/service.js'

/*
 * A sender and a mediator, each behind a proxy of its own; 50 times one of them or both lose their connection at a random
 * moment, for a random while. DROPS=500 npm test -- test/client/drops.test.ts makes it longer, SEED=… repeats a run.
 */
const DROPS = Number(process.env.DROPS ?? 50)
const CONNECTIONS = 20
const LIVE_AGAIN_MS = 2_000
const seed = Number(process.env.SEED ?? Math.floor(Math.random() * 2 ** 32))

t.test(`${DROPS} drops at random under load: nothing is lost, nothing comes twice (SEED=${seed})`, async (t) => {
  t.comment(`SEED=${seed}`)
  const random = mulberry32(seed)
  const service = await startService(t)
  const port = Number(new URL(service.url).port)
  const proxies = [await startProxy({ port }), await startProxy({ port })]
  const [sender, mediator] = proxies.map((proxy) => createClient({ url: `ws://127.0.0.1:${proxy.port}/ws`, callTimeoutMs: 30_000 }))
  t.teardown(() => Promise.all([sender!.close(), mediator!.close()]))
  t.teardown(() => proxies.forEach((proxy) => proxy.close()))

  const ledger = createLedger()
  const ids = new Set<string>()
  const twice: string[] = []
  const connectionIds = Array.from({ length: CONNECTIONS }, newConnectionId)
  const received = (connectionId: string, messages: { id: string; encryptedMessage: unknown }[], via: 'live' | 'take') => {
    const texts = messages.map(({ encryptedMessage }) => (encryptedMessage as { text: string }).text)
    for (const { id } of messages) {
      if (ids.has(id)) twice.push(id)
      ids.add(id)
    }
    for (const text of texts) ledger.received(connectionId, text, via)
    mediator!.removeMessages({ connectionId, messageIds: messages.map(({ id }) => id) }).then(
      () => ledger.acked(texts),
      (error: unknown) => t.fail('an ack failed', { error }),
    )
  }
  mediator!.on('messagesReceived', ({ connectionId, messages }) => received(connectionId, messages, 'live'))

  let restoredAt = 0
  const look = async (connectionId: string) => {
    while ((await mediator!.getAvailableMessageCount({ connectionId })) > 0) {
      const messages = await mediator!.takeFromQueue({ connectionId, limit: 10 })
      if (messages.length > 0) received(connectionId, messages, 'take')
    }
  }
  mediator!.on('sessionsRestored', (event) => {
    if (event.connectionIds.length === CONNECTIONS) restoredAt = performance.now()
    for (const connectionId of event.connectionIds) look(connectionId).catch((error: unknown) => t.fail('a look failed', { error }))
  })
  await Promise.all(connectionIds.map((connectionId) => mediator!.addLiveSession({ connectionId, sessionId: 's' })))

  let isSending = true
  const sending = connectionIds.map(async (connectionId) => {
    while (isSending) {
      const text = ledger.adding(connectionId)
      await sender!.addMessage({ connectionId, recipientDids: [DID], payload: { text } })
      ledger.added(text)
      await sleep(20 + random() * 40)
    }
  })

  const lag = monitorEventLoopDelay()
  lag.enable()
  let slowest = 0
  for (let drop = 0; drop < DROPS; drop++) {
    await sleep(random() * 100)
    const cut = proxies.filter((_, i) => i === drop % 2 || random() < 0.3)
    const isMediators = cut.includes(proxies[1]!)
    for (const proxy of cut) proxy.cut()
    await sleep(random() * 150)
    for (const proxy of cut) proxy.heal()
    const healedAt = performance.now()
    // Some are cut again before they are back.
    if (!isMediators || random() < 0.3) continue
    while (restoredAt < healedAt) {
      if (performance.now() - healedAt > 10_000) throw new Error('the sessions did not come back within 10 s')
      await sleep(5)
    }
    slowest = Math.max(slowest, restoredAt - healedAt)
  }
  isSending = false
  await Promise.all(sending)
  for (const deadline = performance.now() + 10_000; ledger.outstanding().length > 0 && performance.now() < deadline;) await sleep(20)

  const report = ledger.report()
  t.comment(
    JSON.stringify({
      ...report,
      lost: report.lost.length,
      resurrected: report.resurrected.length,
      inversions: report.inversions.length,
      slowestMs: Math.round(slowest),
    }),
  )
  t.ok(report.added > 200, `there was a load: ${report.added} messages`)
  t.same(report.lost, [], 'nothing is lost')
  t.same(report.ghosts, [], 'nothing that was not sent')
  t.same(twice, [], 'no message is delivered twice to the application')
  t.same(report.resurrected, [], 'nothing comes back after its ack, although adds are repeated after that')
  t.equal(report.repeats, 0, 'nor before')
  t.same(report.inversions, [], 'in order')
  // Service, clients and proxies share one event loop here: its own stalls (a busy machine) are not theirs.
  t.ok(slowest < LIVE_AGAIN_MS + lag.max / 1e6, `all sessions were live again within ${Math.round(slowest)} ms of the service's return`)
  for (const connectionId of connectionIds) t.equal(await mediator!.getAvailableMessageCount({ connectionId }), 0)
})
