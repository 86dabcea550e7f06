import { spawn } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { createClient } from '../../packages/client/src/index.js'
import { startRedis } from '../helpers/redis.js'
import { connect } from '../helpers/service.js'
import { newOutcomes, openClient } from './client.js'
import { addOne } from './load.js'
import { LOAD_MS, onlyFull, scenario, settled, withoutRedis } from './scenario.js'

/* What may happen to instances and to the sockets on them. */

const ROUNDS = 100

scenario('F0: no fault, and Postgres alone: everything crosses, in order, once', {}, async (t, world) => {
  const { a, b } = await world.startTwo()
  await world.load({ from: [a], to: [b] })
  await sleep(LOAD_MS)
})

scenario(
  'F1: kill -9 of the instance that holds the sessions',
  { skip: withoutRedis, maxRepeats: 100, withinMs: 5_000, allowed: ['lost'] },
  async (t, world) => {
    const redis = await startRedis()
    t.teardown(() => redis.kill())
    const { a, b } = await world.startTwo({ REDIS_URL: redis.url })
    const { connections } = await world.load({ from: [a], to: [b, a] })
    const abandoned = randomUUID()
    const forgotten = await connect(b.ws, t)
    forgotten.socket.on('error', () => {})
    await forgotten.call('addLiveSession', { connectionId: abandoned, sessionId: 'never returns' })
    await sleep(LOAD_MS / 2 + world.random.between(0, 500))
    // A repeat is what was delivered and not yet acked when the socket was lost: 20 ms of the load, and those in the kernel.
    world.ledger.touched(connections)
    const killed = performance.now()
    await b.end('SIGKILL')
    await sleep(LOAD_MS / 2)
    const witness = await connect(a.ws, t)
    while ((await witness.call('getLiveSession', { connectionId: abandoned })) !== null) await sleep(200)
    await witness.close()
    const freedAfter = performance.now() - killed
    t.ok(freedAfter < 35_000, 'the session of a wallet that did not return is freed')
    world.measured(`leases free after ${(freedAfter / 1_000).toFixed(1)} s`)
  },
)

scenario(
  'F2: kill -9 of both instances',
  { skip: onlyFull || withoutRedis, maxRepeats: 100, withinMs: 8_000, allowed: ['lost'] },
  async (t, world) => {
    const redis = await startRedis()
    t.teardown(() => redis.kill())
    const { a, b } = await world.startTwo({ REDIS_URL: redis.url })
    const { connections } = await world.load({ from: [a, b], to: [b, a] })
    const wallet = randomUUID()
    const ours = createClient({ url: [a.ws, b.ws] })
    await ours.addLiveSession({ connectionId: wallet, sessionId: 'ours' })
    ours.on('messagesReceived', ({ messages }) => {
      const texts = messages.map(({ encryptedMessage }) => (encryptedMessage as { text: string }).text)
      for (const text of texts) world.ledger.received(wallet, text, 'live')
      void ours.removeMessages({ connectionId: wallet, messageIds: messages.map(({ id }) => id) }).then(() => world.ledger.acked(texts))
    })
    const restored = new Promise((resolve) => ours.on('sessionsRestored', resolve))
    await sleep(LOAD_MS / 2 + world.random.between(0, 500))
    world.ledger.touched(connections)
    await Promise.all([a.end('SIGKILL'), b.end('SIGKILL')])
    const restarted = performance.now()
    const again = await Promise.all([a, b].map(({ url }) => world.start({ REDIS_URL: redis.url, PORT: new URL(url).port })))
    const readyMs = performance.now() - restarted
    t.ok(readyMs < 5_000, 'both are ready again')
    await restored
    const backMs = performance.now() - restarted
    const sender = await connect(again[0]!.ws, t)
    await addOne(world.ledger, sender, wallet)
    await sender.close()
    t.ok(
      await settled(() => world.ledger.outstanding().every((text) => !text.startsWith(wallet)), 2_000),
      'our client is live again by itself',
    )
    await sleep(LOAD_MS / 2)
    await ours.close()
    world.measured(`ready after ${(readyMs / 1_000).toFixed(1)} s, our client live after ${(backMs / 1_000).toFixed(1)} s`)
  },
)

scenario(
  'F3: a rolling restart by SIGTERM',
  { skip: withoutRedis, maxRepeats: 200, withinMs: 5_000, allowed: ['lost', 'shutting_down'] },
  async (t, world) => {
    const redis = await startRedis()
    t.teardown(() => redis.kill())
    const { a, b } = await world.startTwo({ REDIS_URL: redis.url })
    const { mediator, connections } = await world.load({ from: [a, b], to: [b, a] })
    world.ledger.touched(connections)
    const ours = createClient({ url: [b.ws, a.ws] })
    const wallet = randomUUID()
    world.ledger.waiting([wallet])
    let stopped = false
    const adding = (async () => {
      for (; !stopped; await sleep(20)) await addOne(world.ledger, { call: (_method, params) => ours.addMessage(params as never) }, wallet)
    })()
    await sleep(LOAD_MS / 3)
    const drains = []
    let next = b
    for (const [i, server] of [b, a].entries()) {
      const begun = performance.now()
      t.equal(await server.end('SIGTERM'), 0)
      drains.push(performance.now() - begun)
      t.same(mediator.closes, Array(i + 1).fill(1012))
      next = await world.start({ REDIS_URL: redis.url, PORT: new URL(server.url).port })
      await sleep(LOAD_MS / 3)
    }
    stopped = true
    await adding
    t.pass('no call of our client failed')
    await ours.close()
    t.ok(Math.max(...drains) < 10_000, 'they drain in time')
    const reader = await openClient(next.ws, world.outcomes)
    const messages = await reader.call('takeFromQueue', { connectionId: wallet, deleteMessages: true })
    for (const { encryptedMessage } of messages) world.ledger.received(wallet, encryptedMessage.text, 'take')
    world.ledger.acked(messages.map(({ encryptedMessage }: any) => encryptedMessage.text))
    reader.socket.terminate()
    world.measured(`drained in ${Math.round(Math.max(...drains))} ms`)
  },
)

scenario(
  'F13: a phantom: the owner is stopped without a word, the wallet returns elsewhere',
  { skip: withoutRedis, atLeast: 5 },
  async (t, world) => {
    const redis = await startRedis()
    t.teardown(() => redis.kill())
    const { a, b } = await world.startTwo({ REDIS_URL: redis.url, PING_INTERVAL_MS: '1000', PONG_TIMEOUT_MS: '1000' })
    const connectionId = randomUUID()
    const phantom = spawn(process.execPath, [
      '-e',
      `const socket = new (require('ws'))('${b.ws}')
     socket.on('open', () => socket.send(JSON.stringify({ jsonrpc: '2.0', id: 1, method: 'addLiveSession', params: { connectionId: '${connectionId}', sessionId: 'phantom' } })))
     socket.on('message', (data) => console.log(String(data)))`,
    ])
    t.teardown(() => phantom.kill('SIGKILL'))
    await new Promise((resolve) => phantom.stdout.once('data', resolve))
    phantom.kill('SIGSTOP')
    const sender = await connect(a.ws, t)
    for (let n = 1; n <= 5; n++) await addOne(world.ledger, sender, connectionId)
    const wallet = await connect(a.ws, t)
    await wallet.call('addLiveSession', { connectionId, sessionId: 'real' })
    const started = performance.now()
    t.equal(await wallet.call('getAvailableMessageCount', { connectionId }), 5)
    const messages = await wallet.call('takeFromQueue', { connectionId })
    t.ok(performance.now() - started < 1_000, 'everything un-acked, within a second')
    const texts = messages.map(({ encryptedMessage }: any) => encryptedMessage.text)
    for (const text of texts) world.ledger.received(connectionId, text, 'take')
    await wallet.call('removeMessages', { connectionId, messageIds: messages.map(({ id }: any) => id) })
    world.ledger.acked(texts)

    const another = randomUUID()
    const left = await connect(b.ws, t)
    left.socket.on('error', () => {})
    await left.call('addLiveSession', { connectionId: another, sessionId: 's' })
    left.socket.pause()
    while ((await sender.call('getLiveSession', { connectionId: another })) !== null) await sleep(100)
    t.pass('a phantom whose wallet does not return is reaped')
    phantom.kill('SIGKILL')
    left.socket.terminate()
    await Promise.all([sender.close(), wallet.close()])
  },
)

scenario('F17: the late remove of a displaced owner', { skip: withoutRedis, atLeast: ROUNDS }, async (t, world) => {
  const redis = await startRedis()
  t.teardown(() => redis.kill())
  const { a, b } = await world.startTwo({ REDIS_URL: redis.url })
  const outcomes = newOutcomes()
  const onEvent = (method: string, { connectionId, messages }: any) => {
    if (method !== 'messagesReceived') return
    const texts = messages.map(({ encryptedMessage }: any) => encryptedMessage.text)
    for (const text of texts) world.ledger.received(connectionId, text, 'live')
    void atB.call('removeMessages', { connectionId, messageIds: messages.map(({ id }: any) => id) }).then(() => world.ledger.acked(texts))
  }
  const [atA, other] = [await connect(a.ws, t), await connect(a.ws, t)]
  const atB = await openClient(b.ws, outcomes, onEvent)
  for (let round = 0; round < ROUNDS; round++) {
    const connectionId = randomUUID()
    await atA.call('addLiveSession', { connectionId, sessionId: 'a' })
    await atB.call('addLiveSession', { connectionId, sessionId: 'b' })
    t.equal(await atA.call('removeLiveSession', { connectionId }), false)
    t.equal(await other.call('getLiveSession', { connectionId }), true, 'true on both instances')
    await addOne(world.ledger, other, connectionId)
    await atA.frame(({ method, params }) => method === 'liveSessionReplaced' && params.connectionId === connectionId)
  }
  t.ok(await settled(() => world.ledger.report().unacked.length === 0 && world.ledger.outstanding().length === 0, 2_000))
  t.equal(atA.frames.filter(({ method }) => method === 'messagesReceived').length, 0, 'nothing went to the displaced ones')
  t.same(outcomes.failures, {})
  atB.socket.terminate()
  await Promise.all([atA.close(), other.close()])
  world.measured(`${ROUNDS} of ${ROUNDS} sessions stayed`)
})
