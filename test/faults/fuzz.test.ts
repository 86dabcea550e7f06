import { randomUUID } from 'node:crypto'
import { once } from 'node:events'
import { connect as connectTcp } from 'node:net'
import fc from 'fast-check'
import type { Test } from 'tap'
import WebSocket from 'ws'
import type { Probe } from '../../bench/probe.js'
import { request } from '../../bench/stand.js'
import { errorTable, type ErrorName } from '../../src/errors.js'
import { SEED } from '../helpers/random.js'
import { DID } from '../helpers/service.js'
import { openClient } from './client.js'
import { FULL, scenario } from './scenario.js'
import { drain } from './load.js'

/*
 * Hostile frames out of the grammar of the protocol, each with what must be answered. They go down several sockets without waiting; a
 * ping after each lot tells that all of it was answered, because a frame that is no call is answered at once.
 */

const FRAMES = FULL ? 1_000_000 : 20_000
const SOCKETS = 4
const LOT = 400
const MIB = 1024 * 1024

interface Hostile {
  frame: string | Buffer
  /** How it must be refused. */
  refused: ErrorName
}

const METHODS = ['addMessage', 'takeFromQueue', 'getAvailableMessageCount', 'removeMessages', 'removeAllMessages', 'getLiveSession']
const call = (method: unknown, params: unknown, id: unknown = 1) => JSON.stringify({ jsonrpc: '2.0', id, method, params })
const as = <Value>(arbitrary: fc.Arbitrary<Value>, refused: Hostile['refused'], toFrame: (value: Value) => string | Buffer) =>
  arbitrary.map((value): Hostile => ({ frame: toFrame(value), refused }))

const method = fc.constantFrom(...METHODS)
const isJson = (text: string) => {
  try {
    JSON.parse(text)
    return true
  } catch {
    return false
  }
}
/** A valid call with a piece cut out of it, or something in the middle of it. */
const torn = fc
  .tuple(method, fc.nat(60), fc.string({ maxLength: 5 }))
  .map(([name, at, noise]) => {
    const text = call(name, { connectionId: 'c', recipientDids: [DID], payload: {} })
    return text.slice(0, at) + noise + text.slice(at + 1 + noise.length)
  })
  .filter((text) => !isJson(text))
const connectionIdOf = (connectionId: string) => ({ connectionId, recipientDids: [DID], payload: {} })
/** What JSON.stringify would not write: keys that mean something to JavaScript. */
const poisoned = fc
  .tuple(method, fc.constantFrom('__proto__', 'constructor', 'toString', 'prototype'))
  .map(
    ([name, key]) =>
      `{"jsonrpc":"2.0","id":1,"method":"${name}","params":{"${key}":{"connectionId":"c","recipientDids":["${DID}"],"payload":{}}}}`,
  )

const hostile: fc.Arbitrary<Hostile> = fc.oneof(
  as(torn, 'parse_error', String),
  as(
    fc.string().filter((text) => !isJson(text)),
    'parse_error',
    String,
  ),
  as(fc.integer({ min: 65, max: 5_000 }), 'too_deep', (depth) => '['.repeat(depth) + ']'.repeat(depth)),
  as(fc.integer({ min: 65, max: 500 }), 'too_deep', (depth) => '{"a":'.repeat(depth) + '1' + '}'.repeat(depth)),
  as(fc.integer({ min: 101, max: 400 }), 'batch_too_long', (length) => `[${Array(length).fill('1').join()}]`),
  as(fc.uint8Array({ maxLength: 200 }), 'invalid_request', (bytes) => Buffer.from(bytes)),
  as(fc.oneof(fc.integer(), fc.boolean(), fc.constant(null), fc.string()), 'invalid_request', (value) => JSON.stringify(value)),
  as(fc.oneof(fc.integer(), fc.boolean(), fc.constant(null)), 'invalid_request', (name) => call(name, {})),
  as(
    fc.string({ unit: 'grapheme', minLength: 1 }).filter((name) => !/^(rpc|ping$|add|take|get|set|remove)/.test(name)),
    'method_not_found',
    (name) => call(name, {}),
  ),
  as(poisoned, 'invalid_params', String),
  as(fc.tuple(method, fc.constantFrom('a\0b', '\ud800', 'x\udfff', '', 'x'.repeat(256))), 'invalid_params', ([name, id]) =>
    call(name, connectionIdOf(id)),
  ),
  as(
    fc.tuple(
      method,
      fc.jsonValue({ maxDepth: 2 }).filter((value) => typeof value !== 'string'),
    ),
    'invalid_params',
    ([name, value]) => call(name, { connectionId: value }),
  ),
  as(
    fc.jsonValue({ maxDepth: 3 }).filter((value) => typeof value !== 'string' && (typeof value !== 'object' || value === null)),
    'invalid_params',
    (payload) => call('addMessage', { connectionId: 'c', recipientDids: [DID], payload }),
  ),
)

/** A socket that is sent rubbish. What comes back is counted by its JSON-RPC code. */
async function openAttacker(url: string) {
  const socket = new WebSocket(url, { perMessageDeflate: false })
  socket.on('error', () => {})
  await once(socket, 'open')
  let answers = new Map<number, number>()
  let isAnswered = () => {}
  let expected = 0
  const count = () => [...answers.values()].reduce((sum, times) => sum + times, 0)
  socket.on('message', (data: Buffer) => {
    const { error } = JSON.parse(data.toString())
    answers.set(error?.code ?? 0, (answers.get(error?.code ?? 0) ?? 0) + 1)
    if (count() >= expected) isAnswered()
  })
  return {
    socket,
    /** @returns how often each code came. Every frame is answered once, in any order. */
    async send(frames: readonly (string | Buffer)[]): Promise<Map<number, number>> {
      answers = new Map()
      expected = frames.length
      const answered = new Promise<void>((resolve, reject) => {
        isAnswered = resolve
        socket.once('close', (code) => reject(new Error(`it was closed with ${code}`)))
      })
      frames.forEach((frame, n) => {
        if (n % 50 !== 0 || frame.length < 2) return socket.send(frame)
        socket.send(frame.slice(0, 1), { fin: false, binary: typeof frame !== 'string' }) // as fragments
        socket.send(frame.slice(1), { fin: true, binary: typeof frame !== 'string' })
      })
      await answered
      socket.removeAllListeners('close')
      return answers
    },
  }
}

const codesOf = (lot: readonly Hostile[]) => {
  const codes = new Map<number, number>()
  for (const { refused } of lot) codes.set(errorTable[refused].code, (codes.get(errorTable[refused].code) ?? 0) + 1)
  return codes
}
const sorted = (codes: Map<number, number>) => [...codes].sort(([a], [b]) => a - b)

/** What is no WebSocket at all, or stops being one. It is closed, and nobody else notices. */
async function breakProtocol(url: string): Promise<void> {
  const { hostname, port } = new URL(url)
  const upgrade = `GET /ws HTTP/1.1\r\nHost: ${hostname}:${port}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: ${Buffer.alloc(16).toString('base64')}\r\n\r\n`
  for (const bytes of [
    Buffer.from([0xff, 0xff, 0xff, 0xff]),
    Buffer.from([0x81, 0x05, 1, 2, 3, 4, 5]),
    Buffer.from([0x89, 0xfe, 0xff, 0xff]),
  ]) {
    const socket = connectTcp(Number(port), hostname)
    socket.on('error', () => {})
    socket.write(upgrade)
    await once(socket, 'data')
    socket.on('data', () => {})
    socket.write(bytes)
    await once(socket, 'close')
  }
}

async function addPayloads(t: Test, client: Awaited<ReturnType<typeof openClient>>, count: number): Promise<void> {
  for (const payload of fc.sample(fc.oneof(fc.object(), fc.string({ unit: 'binary', minLength: 1 })), { numRuns: count, seed: SEED })) {
    const connectionId = randomUUID()
    await client.call('addMessage', { connectionId, recipientDids: [DID], payload })
    const [message] = await client.call('takeFromQueue', { connectionId, deleteMessages: true })
    if (JSON.stringify(message.encryptedMessage) !== JSON.stringify(payload)) t.same(message.encryptedMessage, payload, 'equal to the byte')
  }
}

/** Frame by frame, which of them was answered otherwise. */
async function explain(t: Test, attacker: Awaited<ReturnType<typeof openAttacker>>, frames: readonly Hostile[]): Promise<void> {
  for (const { frame, refused } of frames) {
    const [[code] = []] = [...(await attacker.send([frame]))]
    if (code !== errorTable[refused].code) t.equal(code, errorTable[refused].code, `${refused}: ${String(frame).slice(0, 300)}`)
  }
  t.fail('a lot of frames was answered otherwise than each of them')
}

scenario('F18: hostile frames', { atLeast: 1 }, async (t, world) => {
  const server = await world.start({}, { imports: ['./bench/probe.ts'], ipc: true })
  // After a full collection: what is rubbish stays in memory until there are some 60 MiB of it.
  const memory = async () => (await request<Probe['memory']>(server.child, { name: 'memory' })).rss
  const attackers = await Promise.all(Array.from({ length: SOCKETS }, () => openAttacker(server.ws)))
  const client = await openClient(server.ws, world.outcomes)
  const victim = randomUUID()
  world.ledger.waiting([victim])
  let [sent, warmBytes] = [0, 0]
  for (let lot = 0; sent < FRAMES; lot++) {
    // Each socket sends the same: inventing a frame costs more than answering it.
    const frames = fc.sample(hostile, { numRuns: LOT, seed: SEED + lot })
    const wanted = JSON.stringify(sorted(codesOf(frames)))
    const answers = await Promise.all(attackers.map(({ send }) => send(frames.map(({ frame }) => frame))))
    sent += LOT * SOCKETS
    if (answers.some((codes) => JSON.stringify(sorted(codes)) !== wanted)) return explain(t, attackers[0]!, frames)
    if (lot % 50 === 0) await breakProtocol(server.ws)
    if (warmBytes === 0 && sent >= FRAMES / 5) warmBytes = await memory()
    const text = world.ledger.adding(victim)
    await client.call('addMessage', { connectionId: victim, recipientDids: [DID], payload: { text } })
    world.ledger.added(text)
  }
  const grown = (await memory()) / warmBytes
  t.ok(grown < 1.1, `memory is at ${Math.round(grown * 100)} % of what it was after a fifth of the frames`)
  await addPayloads(t, client, FULL ? 2_000 : 200)
  t.pass('payloads come back equal to the byte')
  await drain({ urls: [server.ws], connections: [victim], ledger: world.ledger, outcomes: world.outcomes })
  for (const { socket } of [...attackers, client]) socket.terminate()
  world.measured(`${sent} frames, memory ${Math.round(warmBytes / MIB)} → ${Math.round((warmBytes * grown) / MIB)} MiB`)
})
