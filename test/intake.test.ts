import { once } from 'node:events'
import { connect as connectTcp, type Socket } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import pg from 'pg'
import t from 'tap'
import { createIntake } from '../src/intake.js'
import { DID, message, newConnectionId, startService } from './helpers/service.js'

/** An intake on a socket that the test holds in its hand. */
function createFixture(maxCalls: number) {
  const begun: string[] = []
  const refused: string[] = []
  const running = new Map<string, () => void>()
  const unsent: (() => void)[] = []
  const state = { paused: false, clogged: false, now: 0, sends: true }
  const intake = createIntake({
    maxCalls,
    now: () => state.now,
    answer(bytes, reply, onCalls) {
      const frame = bytes.toString()
      const calls = Number(frame.split(' ')[1] ?? 1)
      begun.push(frame)
      if (calls > 1) onCalls(calls)
      running.set(frame, () => reply(`answer to ${frame}`, calls))
    },
    refuse(bytes, reply, onCalls) {
      const frame = bytes.toString()
      const calls = Number(frame.split(' ')[1] ?? 1)
      refused.push(frame)
      if (calls > 1) onCalls(calls)
      process.nextTick(reply, undefined, calls)
    },
    send: (_text, onSent) => (state.sends ? onSent() : unsent.push(onSent)),
    isClogged: () => state.clogged,
    pause: () => (state.paused = true),
    resume: () => (state.paused = false),
  })
  const finish = async (frame: string) => {
    running.get(frame)!()
    await new Promise(setImmediate)
  }
  return { intake: { ...intake, accept: (frame: string) => intake.accept(Buffer.from(frame)) }, begun, refused, unsent, state, finish }
}

t.test('as many calls as the limit run, the next waits, in order, and the socket is not read until it has begun', async (t) => {
  const { intake, begun, state, finish } = createFixture(2)
  for (const frame of ['a', 'b']) intake.accept(frame)
  t.notOk(state.paused, 'the limit itself does not pause')
  for (const frame of ['c', 'd']) intake.accept(frame)
  t.same(begun, ['a', 'b'])
  t.ok(state.paused)
  await finish('b')
  t.same(begun, ['a', 'b', 'c'])
  t.ok(state.paused)
  await finish('a')
  t.same(begun, ['a', 'b', 'c', 'd'])
  t.notOk(state.paused)
  intake.close()
})

t.test('a batch counts as its calls, and one larger than the limit begins all the same', async (t) => {
  const { intake, begun, finish } = createFixture(2)
  for (const frame of ['batch 100', 'a']) intake.accept(frame)
  t.same(begun, ['batch 100'])
  await finish('batch 100')
  t.same(begun, ['batch 100', 'a'])
  intake.accept('batch 100')
  t.same(begun, ['batch 100', 'a', 'batch 100'], 'there was room for one')
  await finish('a')
  intake.accept('b')
  t.same(begun.length, 3)
  await finish('batch 100')
  t.same(begun.slice(3), ['b'])
  intake.close()
})

t.test('a sender that does not take its answers makes no more calls', async (t) => {
  const { intake, begun, unsent, state, finish } = createFixture(2)
  state.sends = false
  for (const frame of ['a', 'b', 'c']) intake.accept(frame)
  await finish('a')
  await finish('b')
  t.same(begun, ['a', 'b'], 'an answer that has not left is in flight')
  unsent[0]!()
  t.same(begun, ['a', 'b', 'c'])
  state.clogged = true
  unsent[1]!()
  intake.accept('d')
  t.same(begun, ['a', 'b', 'c'])
  t.ok(state.paused)
  intake.close()
})

t.test('what waits behind calls that do not end is refused while its sender still waits for it', async (t) => {
  const { intake, begun, refused, state } = createFixture(1)
  const [real, tick] = [setInterval, { run: () => {} }]
  globalThis.setInterval = (run: () => void) => {
    tick.run = run
    return real(() => {}, 1_000_000)
  }
  t.teardown(() => (globalThis.setInterval = real))
  intake.accept('a')
  intake.accept('batch 5')
  state.now = 900
  intake.accept('c')
  tick.run()
  t.same(refused, [])
  state.now = 1_100
  tick.run()
  t.same(refused, ['batch 5'])
  t.same(begun, ['a'], 'and was not begun')
  await new Promise(setImmediate)
  t.same(begun, ['a'], 'nor does it make room for more than there was')
  state.now = 5_000
  state.clogged = true
  tick.run()
  t.same(refused, ['batch 5'], 'who takes no answers is not sent more')
  intake.close()
})

t.test('many more calls than the limit, alone and in batches, are all answered and in order', async (t) => {
  const service = await startService(t, { MAX_CALLS_IN_FLIGHT: '8' })
  const client = await service.connect()
  const connectionId = newConnectionId()
  const ids = await Promise.all(Array.from({ length: 100 }, (_, n) => client.call('addMessage', message(connectionId, n))))
  const seqs = ids.map((id: string) => Number(id.split('-')[0]))
  t.same(
    seqs,
    [...seqs].sort((a, b) => a - b),
  )
  const batch = (b: number) =>
    Array.from({ length: 100 }, (_, n) => ({
      jsonrpc: '2.0',
      id: `${b}/${n}`,
      method: 'getAvailableMessageCount',
      params: { connectionId },
    }))
  for (const b of [0, 1, 2]) client.socket.send(JSON.stringify(batch(b)))
  for (const b of [0, 1, 2]) {
    const replies = (await client.frame((frame) => Array.isArray(frame) && (frame as any)[0].id === `${b}/0`)) as any
    t.equal(replies.length, 100)
    t.ok(replies.every(({ result }: any) => result === 100))
  }
})

t.test('a call that waited behind others is answered in time all the same: its time counts from its arrival', async (t) => {
  const service = await startService(t, { MAX_CALLS_IN_FLIGHT: '4' })
  const client = await service.connect()
  await client.call('addMessage', message(newConnectionId()))
  const locker = new pg.Client(service.databaseUrl)
  await locker.connect()
  t.teardown(() => locker.end())
  await locker.query('BEGIN; LOCK TABLE queued_messages IN ACCESS EXCLUSIVE MODE')
  const wave = () =>
    Array.from({ length: 4 }, async () => {
      const sentAt = performance.now()
      const { error } = await client.ask('addMessage', message(newConnectionId()))
      return { code: error?.data.code, ms: performance.now() - sentAt }
    })
  const first = wave()
  await sleep(400)
  const answers = await Promise.all([...first, ...wave()])
  t.ok(answers.every(({ code }) => code === 'timeout' || code === 'overloaded'))
  const slowest = Math.max(...answers.map(({ ms }) => ms))
  t.ok(slowest < 1_800, `the slowest answer took ${Math.round(slowest)} ms`) // 1.4 s on a machine with time
  t.ok(slowest > 1_000)
})

t.test('a client that calls and does not read is not served on and closed after a while; others are', async (t) => {
  const service = await startService(t, { STALL_TIMEOUT_MS: '1000', PING_INTERVAL_MS: '100000' })
  const other = await service.connect()
  const connectionId = newConnectionId()
  const payload = 'x'.repeat(1_000_000)
  for (let n = 0; n < 4; n++) await other.call('addMessage', { connectionId, recipientDids: [DID], payload })
  const deaf = await service.connect()
  const [, theirs] = [...service.inside.websocketServer.clients]
  const closed = once(theirs!, 'close')
  let most = 0
  const watch = setInterval(() => (most = Math.max(most, theirs!.bufferedAmount)), 5)
  t.teardown(() => clearInterval(watch))
  deaf.socket.pause()
  for (let n = 0; n < 100; n++)
    deaf.socket.send(JSON.stringify({ jsonrpc: '2.0', id: n, method: 'takeFromQueue', params: { connectionId } }))
  t.equal(await other.call('getAvailableMessageCount', { connectionId }), 4)
  await closed
  // 32 calls of 4 MB may have begun before the first answer was refused by the network.
  t.ok(most > 0 && most < 33 * 4_100_000, `${most} bytes were kept for it`)
  t.equal(await other.call('getAvailableMessageCount', { connectionId }), 4)
})

t.test('more calls than an instance takes are refused at once, as overloaded, and it answers that it lives', async (t) => {
  const service = await startService(t, { MAX_CALLS_PER_INSTANCE: '5', MAX_CALLS_IN_FLIGHT: '100' })
  const client = await service.connect()
  const answers = await Promise.all(Array.from({ length: 50 }, () => client.ask('addMessage', message(newConnectionId()))))
  const refused = answers.filter(({ error }) => error)
  t.ok(refused.length > 0 && refused.length < 50, `${refused.length} of 50`)
  for (const { error } of refused) t.match(error, { code: -32004, data: { code: 'overloaded', retryable: true, limit: 5 } })
  t.equal((await service.rest('GET', '/health')).status, 200)
  t.type(await client.call('addMessage', message(newConnectionId())), 'string', 'and takes the next when there is room')
})

t.test('who opens a connection and says nothing, or little by little, is cut off', async (t) => {
  const service = await startService(t)
  const { port, host } = { port: Number(new URL(service.url).port), host: '127.0.0.1' }
  const lasts = async (say: string, more = ''): Promise<number> => {
    const socket: Socket = connectTcp(port, host)
    await once(socket, 'connect')
    const started = performance.now()
    socket.write(say)
    const drip = more && setInterval(() => socket.write(more), 400)
    socket.resume().on('error', () => {})
    await once(socket, 'close')
    clearInterval(drip || undefined)
    return (performance.now() - started) / 1_000
  }
  const body =
    'POST /v1/connections/a/messages HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n{'
  const [silent, header, upgrade, trickle] = await Promise.all([
    lasts(''),
    lasts('GET /health HTTP/1.1\r\n', 'x: y\r\n'),
    lasts('GET /ws HTTP/1.1\r\nupgrade: websocket\r\n', 'x: y\r\n'),
    lasts(body, ' '),
  ])
  for (const seconds of [silent, header, upgrade]) t.ok(seconds > 3 && seconds < 9, `5 s for the headers: ${seconds.toFixed(1)} s`)
  t.ok(trickle > 8 && trickle < 15, `10 s for the whole request: ${trickle.toFixed(1)} s`)
})
