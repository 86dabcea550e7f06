/**
 * Two instances, and what becomes of the messages between them while parts are killed:
 *
 *   npm run demo:cluster
 *
 * It starts Postgres, Redis and two instances of the service on this machine, as real processes, and removes them at the end
 * (throwaway.ts). The times are those of this machine with all of it on it. A ledger (ledger.ts) checks that nothing is lost,
 * changed, out of order, or repeated without a reason; the exit code says so.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import type { RunningServer } from '../test/helpers/process.js'
import type { TestRedis } from '../test/helpers/redis.js'
import { createMail, inTime } from './mail.js'
import { connect, type Mediator } from './mediator-socket.js'
import { createThrowaway, untilSignal, type Throwaway } from './throwaway.js'

const CROSSINGS = 20
// Far more than a hint takes, and far less than the 5 s of the reconciler: above it, hints do not work.
const HINTED_MS = 1_000
const PROMISED_MS = 7_000 // README: "what no hint brings is delivered within 7 s"
// The last chapter: B is killed when the wallet has this many messages from it, and has acked the first of them.
const DELIVERED = 20
const ACKED = 8
const ADDED_AFTERWARDS = 10

interface Instance {
  name: string
  server: RunningServer
  mediator: Mediator
}

const mail = createMail()
const { ledger } = mail

async function demo(throwaway: Throwaway): Promise<void> {
  const { a, b, redis } = await start(throwaway)
  await chapter('across', 'the wallet is live at B, its message comes in at A', () => across(a, b))
  await chapter('moving', 'the wallet goes to A without a word to B', () => moving(a, b))
  await chapter('no Redis', 'it is killed with kill -9', () => noRedis(throwaway, redis, a, b))
  await chapter('Redis again', 'a new one in its place', () => redisAgain(throwaway, redis, a, b))
  await chapter('no B', 'it is killed with kill -9, with the wallet on it', () => noB(throwaway, a, b))

  const waits = await mail.count(a.mediator)
  ledger.expect(waits === 0, `${waits} messages are left in the queue`)
  const problems = ledger.verdict()
  if (problems.length > 0) throw new Error(problems.join('; '))
  const { added, received, repeated, acked } = ledger.totals
  console.log()
  say(`${added} messages were added, ${received} arrived, ${acked} were acked; the queue is empty`)
  say(`${repeated} arrived twice: B had delivered them, and they were not acked when it was killed`)
}

async function start(throwaway: Throwaway): Promise<{ a: Instance; b: Instance; redis: TestRedis }> {
  const DATABASE_URL = await throwaway.postgres()
  say(`Postgres runs in ${throwaway.folder}`)
  const redis = await throwaway.redis()
  say(`Redis runs on port ${redis.port} (pid ${redis.child.pid})`)
  const startInstance = async (name: string): Promise<Instance> => {
    const server = await throwaway.instance({ DATABASE_URL, REDIS_URL: redis.url })
    say(`instance ${name} runs on ${server.url} (pid ${server.pid})`)
    return { name, server, mediator: await connect(name, server.ws) }
  }
  const [a, b] = await Promise.all([startInstance('A'), startInstance('B')])
  await untilBothSay('ready', a, b)
  say('/ready of A and B says ready; each has a mediator on it')
  return { a, b, redis }
}

async function across(a: Instance, b: Instance): Promise<void> {
  await mail.goLive(b.mediator)
  check(await mail.isLive(a.mediator), 'A does not see that the wallet is live at B')
  say('the wallet is live at B, and A sees that it is live')
  await crossOnce(a, b, ' (nothing is warm yet)')
  await crossMany(a, b)
}

async function moving(a: Instance, b: Instance): Promise<void> {
  await move(b, a)
  check((await mail.endLive(b.mediator)) === false, 'the late removeLiveSession of the former owner did not answer false')
  for (const { name, mediator } of [a, b]) check(await mail.isLive(mediator), `${name} says that the wallet is not live any more`)
  say("the former owner's late removeLiveSession answers false, and the wallet stays live at A")
  await crossOnce(b, a)
}

async function noRedis(throwaway: Throwaway, redis: TestRedis, a: Instance, b: Instance): Promise<void> {
  const killed = performance.now()
  await throwaway.kill(redis)
  await untilBothSay('degraded', a, b)
  say(`/ready of A and B says degraded, ${ms(performance.now() - killed)} after the kill`)
  const { arrivedMs } = await mail.send(b.mediator, a.mediator, (answeredMs) =>
    say(`a message is added at B: answered after ${ms(answeredMs)}, since Redis is not waited for …`),
  )
  say(`… arrived at A after ${(arrivedMs / 1_000).toFixed(1)} s, found by the reconciler, which looks every 5 s`)
  check(arrivedMs <= PROMISED_MS, `a message took ${ms(arrivedMs)} without Redis, and ${PROMISED_MS} ms are promised`)
  const local = await mail.send(a.mediator, a.mediator)
  say(`a message is added at A, where the wallet is: arrived after ${ms(local.arrivedMs)}, Redis or not`)
}

async function redisAgain(throwaway: Throwaway, redis: TestRedis, a: Instance, b: Instance): Promise<void> {
  const { child, port } = await throwaway.redis(redis.port)
  const startedAt = performance.now()
  say(`a new, empty Redis runs on port ${port} (pid ${child.pid})`)
  await untilBothSay('ready', a, b)
  say(`/ready of A and B says ready, ${ms(performance.now() - startedAt)} later`)
  await crossOnce(b, a)
  await crossMany(b, a)
}

async function noB(throwaway: Throwaway, a: Instance, b: Instance): Promise<void> {
  await move(a, b)
  const acks: Promise<void>[] = []
  let deliver = (_messages: number) => {}
  const delivered = new Promise<void>((resolve) => {
    let sum = 0
    deliver = (messages) => (sum += messages) >= DELIVERED && resolve()
  })
  b.mediator.onMessages = (messages) => {
    ledger.received(messages)
    for (const message of messages.slice(0, ACKED - acks.length)) acks.push(mail.ack(b.mediator, [message]))
    deliver(messages.length)
  }
  for (let i = 0; i < DELIVERED; i++) await mail.add(a.mediator)
  await inTime(delivered, `the last of ${DELIVERED} messages for the wallet at B`)
  await Promise.all(acks)
  say(`${DELIVERED} messages, added at A, arrived at B; the wallet has acked ${ACKED} of them`)

  b.mediator.onMessages = () => {} // what B still sends does not get to the wallet
  await mail.add(b.mediator)
  const killed = performance.now()
  await throwaway.kill(b.server)
  say('one is added at B, and as soon as it is answered B is killed')
  const unacked = ledger.socketLost()
  for (let i = 0; i < ADDED_AFTERWARDS; i++) await mail.add(a.mediator)
  say(`${ADDED_AFTERWARDS} are added at A, whose /ready says ${await readiness(a)}`)

  const waits = await mail.goLive(a.mediator)
  say(`the wallet is live at A, ${ms(performance.now() - killed)} after the kill; ${waits} messages wait`)
  const expected = unacked + 1 + ADDED_AFTERWARDS
  check(waits === expected, `${waits} messages wait after the kill of B and it should be ${expected}`)
  await mail.takeAll(a.mediator)
  say(`the wallet has taken them: ${unacked} that B had delivered, the last that B answered, ${ADDED_AFTERWARDS} of A`)
  const { arrivedMs } = await mail.send(a.mediator, a.mediator)
  say(`a new one arrives live, after ${ms(arrivedMs)}`)
}

// ——— what the chapters are made of

async function crossOnce(from: Instance, to: Instance, note = ''): Promise<void> {
  const { answeredMs, arrivedMs } = await mail.send(from.mediator, to.mediator)
  say(`a message is added at ${from.name}: answered after ${ms(answeredMs)}, arrived at ${to.name} after ${ms(arrivedMs)}${note}`)
}

async function crossMany(from: Instance, to: Instance): Promise<void> {
  const answered: number[] = []
  const arrived: number[] = []
  for (let i = 0; i < CROSSINGS; i++) {
    const { answeredMs, arrivedMs } = await mail.send(from.mediator, to.mediator)
    answered.push(answeredMs)
    arrived.push(arrivedMs)
  }
  const told = (times: number[]) => `median ${ms(median(times)).padStart(7)}, slowest ${ms(Math.max(...times)).padStart(7)}`
  say(`${CROSSINGS} of those, one after the other: answered  ${told(answered)}`)
  say(`                                 arrived   ${told(arrived)}`)
  check(median(arrived) < HINTED_MS, `half of the messages took ${ms(median(arrived))} or more to cross: hints do not work`)
}

/** The wallet, live at `from`, goes live at `to`. */
async function move(from: Instance, to: Instance): Promise<void> {
  const startedAt = performance.now()
  const replaced = new Promise<number>((resolve) => (from.mediator.onReplaced = () => resolve(performance.now() - startedAt)))
  await mail.goLive(to.mediator)
  say(`the wallet is live at ${to.name}`)
  const toldMs = await inTime(replaced, `liveSessionReplaced for the former owner at ${from.name}`)
  say(`the former owner at ${from.name} was told (liveSessionReplaced) after ${ms(toldMs)}`)
}

async function readiness({ server }: Instance): Promise<string> {
  const { status } = (await (await fetch(`${server.url}/ready`)).json()) as { status: string }
  return status
}

async function untilBothSay(status: string, a: Instance, b: Instance): Promise<void> {
  let isLate = false
  const both = async () => {
    while (!isLate && !(await Promise.all([a, b].map(readiness))).every((said) => said === status)) await sleep(10)
  }
  await inTime(both(), `"${status}" from /ready of A and B`).finally(() => (isLate = true))
}

function check(isTrue: boolean, otherwise: string): void {
  if (!isTrue) throw new Error(otherwise)
}

// ——— telling

const started = performance.now()
let isOver = false

function say(text: string): void {
  if (!isOver) console.log(`${(performance.now() - started).toFixed(0).padStart(6)} ms   ${text}`)
}

async function chapter(title: string, why: string, play: () => Promise<void>): Promise<void> {
  console.log()
  say(`${title.toUpperCase()}: ${why}`)
  await play()
  if (!ledger.isSound()) throw new Error(`${title}: ${ledger.verdict().join('; ')}`)
}

function ms(time: number): string {
  return `${time.toFixed(time < 10 ? 1 : 0)} ms`
}

function median(times: readonly number[]): number {
  return times.toSorted((one, other) => one - other)[Math.floor(times.length / 2)]!
}

let failure: string | undefined
let throwaway: Throwaway | undefined
const signal = untilSignal()
try {
  console.log('Postgres, Redis and two instances, A and B, start on this machine. Ctrl-C ends it.\n')
  throwaway = createThrowaway()
  await Promise.race([demo(throwaway), signal])
} catch (error) {
  failure = (error as Error).message
}
isOver = true
if (failure !== undefined) console.log(`\nThe demo did not come to its end: ${failure}`)
try {
  await throwaway?.stop()
  console.log(failure === undefined ? '\nNothing was lost. Everything is stopped and removed.' : 'Everything is stopped and removed.')
} catch (error) {
  failure = (error as Error).message
  console.log(`Not everything could be stopped and removed: ${failure}`)
}
process.exit(failure === undefined ? 0 : 1) // what a demo that was ended still waits for must not keep it alive
