/**
 * A wallet's day, told by the two mediators that keep its mail:
 *
 *   npx tsx examples/day.ts [ws://127.0.0.1:3000 [ws://the-instance-of-mediator-B]]
 *
 * What a mediator needs is a socket (mediator-socket.ts), eight methods and one notification, messagesReceived. A ledger
 * outside the service (ledger.ts) checks that nothing is lost, repeated, changed or out of order; the exit code says so.
 */
import { randomUUID } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { createDid, createEnvelope } from './envelope.js'
import { createLedger, type QueuedMessage } from './ledger.js'
import { connect, Refusal, type Mediator } from './mediator-socket.js'

const NIGHT_MESSAGES = 500
const MORNING_MESSAGES = 200
const LIVE_MESSAGES = 60
const EVENING_MESSAGES = 40
// The burst: the wallet acks the first 30 of 80, is handed 20 more that it never acks, and is gone.
const BURST_MESSAGES = 80
const BURST_ACKED = 30
const BURST_RECEIVED = 50
const BURST_INTERVAL_MS = 5

const BATCH = 10 // what Credo asks for in one take
const DELIVERY_TIMEOUT_MS = 15_000 // live mail takes milliseconds; were every hint lost, the service would look again within 5 s
const TRIES = 5

const [urlA = 'ws://127.0.0.1:3000', urlB = urlA] = process.argv.slice(2)

// The mediators' name for their connection with this wallet. It names the queue, so both must use the same one.
const connectionId = randomUUID()
const recipientDid = createDid()
const ledger = createLedger()

async function day(): Promise<void> {
  const a = await connect('A', urlA)
  const b = await connect('B', urlB)
  say(`mediator A at ${urlA}, mediator B at ${urlB}; the wallet is connection ${connectionId}`)

  await chapter('03:00', 'night', 'the wallet is off, its mail comes in through both mediators', () => night(a, b))
  await chapter('08:00', 'morning', 'the wallet reads with pickup V2 at mediator B', () => morning(b))
  await chapter('12:00', 'noon', 'an older wallet app reads the rest with pickup V1 at mediator A', () => noon(a))
  await chapter('15:00', 'live', 'the wallet stays connected to B: mail comes by itself', () => live(a, b))
  await chapter('17:00', 'tunnel', "B's socket is lost without a word in the middle of a burst", () => tunnel(a, b))
  const back = await connect('B', urlB)
  await chapter('17:05', 'return', 'a new socket, in the order in which Credo does it', () => comeBack(a, back))
  await chapter('22:00', 'evening', 'the wallet goes off; a last look before sleep, at the other mediator', () => evening(a, back))

  for (const mediator of [a, back]) ledger.expect((await count(mediator)) === 0, `mediator ${mediator.name} does not find the queue empty`)
  ledger.expect((await take(a, { limit: BATCH })).length === 0, 'the count is 0, but there was something to take')
  await Promise.all([a.close(), back.close()])
}

async function night(a: Mediator, b: Mediator): Promise<void> {
  ledger.expect((await a.call('getLiveSession', { connectionId })) === null, 'there is a live session that nobody opened')
  // One after the other: "first" and "second" mean something between two mediators only when the first has its answer.
  for (let i = 0; i < NIGHT_MESSAGES; i++) await addMessage(i % 2 === 0 ? a : b)
  say(`${NIGHT_MESSAGES} messages, ${megabytes(ledger.totals.bytes)}, through A and B in turn; each id came after its commit`)
  await expectCount(b, NIGHT_MESSAGES)
}

async function morning(b: Mediator): Promise<void> {
  await pickupV2(b, NIGHT_MESSAGES - MORNING_MESSAGES)
  say(`the wallet has read ${MORNING_MESSAGES} and closes; the rest waits, for whichever mediator it comes to`)
}

/**
 * [RFC 0685] status-request, delivery-request, messages-received, and again while the status says that there is more.
 * Nothing is removed before the wallet has it: a lost answer costs one more take.
 */
async function pickupV2(mediator: Mediator, until = 0): Promise<void> {
  let waits = await count(mediator)
  say(`status: ${waits} wait; take ${BATCH}, hand them over, remove what the wallet confirms, and again`)
  while (waits > until) {
    const messages = await take(mediator, { limit: BATCH })
    ledger.expect(messages.length > 0, `the count was ${waits}, but there was nothing to take`)
    ledger.received(messages)
    await ack(mediator, messages)
    waits = await count(mediator)
    ledger.expect(waits === ledger.waiting(), `the count is ${waits} where ${ledger.waiting()} messages wait`)
    stopIfWrong()
  }
  say(`status: ${waits} wait`)
}

/**
 * [RFC 0212] batch-pickup knows no ack, so what is taken is removed in the same moment. An answer that is lost on its way
 * takes its messages with it: for wallets that can do nothing else.
 */
async function noon(a: Mediator): Promise<void> {
  say(`take ${BATCH} with deleteMessages until a batch is empty`)
  let batches = 0
  for (; ; batches++) {
    const messages = await take(a, { limit: BATCH, deleteMessages: true })
    if (messages.length === 0) break
    ledger.received(messages)
    ledger.acked(messages.map(({ id }) => id))
    stopIfWrong()
  }
  say(`${batches} batches, and then an empty one`)
  await expectCount(a, 0)
}

async function live(a: Mediator, b: Mediator): Promise<void> {
  ackWhatIsDelivered(b)
  ledger.expect((await b.call('addLiveSession', { connectionId, sessionId: randomUUID() })) === true, 'addLiveSession failed')
  ledger.expect((await a.call('getLiveSession', { connectionId })) === true, "A does not see B's live session")
  say('B opened a live session, and A sees that there is one')
  for (let i = 0; i < LIVE_MESSAGES; i++) await addMessage(a)
  await until(() => ledger.waiting() === 0, 'the live messages')
  say(`${LIVE_MESSAGES} messages added at A came to B as messagesReceived and were acked with removeMessages`)
}

/** In a live session the service sends by itself. The ack is the same as ever; it makes room for what comes next. */
function ackWhatIsDelivered(mediator: Mediator): void {
  mediator.onMessages = (messages) => {
    ledger.received(messages)
    inBackground(ack(mediator, messages))
  }
}

async function tunnel(a: Mediator, b: Mediator): Promise<void> {
  const lost = loseSocketDuringBurst(b)
  const adds: Promise<void>[] = []
  for (let i = 0; i < BURST_MESSAGES; i++) {
    adds.push(addMessage(a)) // not awaited: the calls of one socket take effect in the order in which they were sent
    await sleep(BURST_INTERVAL_MS)
  }
  await Promise.all(adds)
  const unacked = await lost
  say(`after ${BURST_ACKED} acks the wallet fell silent; ${unacked} more were handed to it when the socket was lost`)
  say(`A added all ${BURST_MESSAGES}. The service cannot know whether those ${unacked} were read, so they will come again`)
}

/** @returns how many messages the wallet had, without an ack, when the socket was lost. */
function loseSocketDuringBurst(b: Mediator): Promise<number> {
  let handedOver = 0
  const acks: Promise<void>[] = []
  const lose = async () => {
    await Promise.all(acks) // an ack whose answer is lost with the socket may have worked or not; that would blur the ledger
    b.lose()
    return ledger.socketLost()
  }
  return new Promise((resolve, reject) => {
    b.onMessages = (messages) => {
      for (const message of messages) {
        if (handedOver === BURST_RECEIVED) return // what still comes down this socket never gets to the wallet
        ledger.received([message])
        if (++handedOver <= BURST_ACKED) acks.push(ack(b, [message]))
        if (handedOver === BURST_RECEIVED) lose().then(resolve, reject)
      }
    }
    setTimeout(() => reject(new Error('the burst did not come in time')), DELIVERY_TIMEOUT_MS).unref()
  })
}

async function comeBack(a: Mediator, b: Mediator): Promise<void> {
  ackWhatIsDelivered(b)
  // Not awaited one by one, as Credo does it: the calls of one socket for one connection take effect in the order sent.
  // The first ends what the lost socket may have left, so its answer depends on who noticed the loss first.
  const [hadSession, isLive, waits] = await Promise.all([
    b.call('removeLiveSession', { connectionId }),
    b.call('addLiveSession', { connectionId, sessionId: randomUUID() }),
    count(b),
  ])
  ledger.expect(isLive === true, 'addLiveSession failed on return')
  ledger.expect(waits === ledger.waiting(), `on return the count is ${waits} where ${ledger.waiting()} messages wait`)
  say(`the old session was ${hadSession ? 'still there and is ended' : 'already ended by the loss of its socket'}; ${waits} messages wait`)

  // The backlog is not delivered by itself: whoever opens a live session asks for it.
  await pickupV2(b)
  say(`${ledger.totals.repeated} of them the wallet had seen before the tunnel; none of them was acked`)
  for (let i = 0; i < BATCH; i++) await addMessage(a)
  await until(() => ledger.waiting() === 0, 'the live messages')
  say(`${BATCH} new messages came live again`)
}

async function evening(a: Mediator, b: Mediator): Promise<void> {
  ledger.expect((await b.call('removeLiveSession', { connectionId })) === true, 'there was no live session to remove')
  ledger.expect((await a.call('getLiveSession', { connectionId })) === null, 'the live session outlived its removal')
  b.onMessages = () => ledger.expect(false, 'a message was delivered without a live session')
  for (let i = 0; i < EVENING_MESSAGES; i++) await addMessage(i % 2 === 0 ? b : a)
  say(`B ended the live session; ${EVENING_MESSAGES} messages wait again, and none was delivered`)
  await pickupV2(a)
}

// ——— what the chapters are made of

/** The key makes a second try safe: while the message exists, the same key answers with the same id. */
async function addMessage(mediator: Mediator): Promise<void> {
  const entry = ledger.add(createEnvelope(recipientDid))
  const params = { connectionId, recipientDids: [recipientDid], payload: entry.payload, idempotencyKey: randomUUID() }
  ledger.stored(entry, await insist(() => mediator.call('addMessage', params)))
}

/** The wallet has the messages: from now on the service need not keep them. */
async function ack(mediator: Mediator, messages: readonly QueuedMessage[]): Promise<void> {
  const messageIds = messages.map(({ id }) => id)
  await insist(() => mediator.call('removeMessages', { connectionId, messageIds }))
  ledger.acked(messageIds)
}

function take(mediator: Mediator, options: { limit: number; deleteMessages?: boolean }): Promise<QueuedMessage[]> {
  return mediator.call('takeFromQueue', { connectionId, ...options })
}

function count(mediator: Mediator): Promise<number> {
  return mediator.call('getAvailableMessageCount', { connectionId })
}

async function expectCount(mediator: Mediator, expected: number): Promise<void> {
  const waits = await count(mediator)
  ledger.expect(waits === expected, `the count is ${waits} and should be ${expected}`)
}

/** For calls that may be repeated without harm. The service says of each error whether another try makes sense. */
async function insist<T>(call: () => Promise<T>): Promise<T> {
  for (let tries = 1; ; tries++) {
    try {
      return await call()
    } catch (error) {
      if (!(error instanceof Refusal && error.isRetryable) || tries === TRIES) throw error
      await sleep(200 * tries)
    }
  }
}

/** A queue that goes wrong may never become empty. */
function stopIfWrong(): void {
  if (!ledger.isSound()) throw new Error('stopped here')
}

function inBackground(work: Promise<void>): void {
  work.catch((error: Error) => ledger.expect(false, error.message))
}

async function until(isTrue: () => boolean, what: string): Promise<void> {
  for (const deadline = performance.now() + DELIVERY_TIMEOUT_MS; !isTrue(); await sleep(5)) {
    if (performance.now() > deadline) throw new Error(`${what} did not come in time`)
  }
}

// ——— telling

const started = performance.now()
const rows: string[][] = []

function say(text: string): void {
  console.log(`${seconds(performance.now() - started)}          ${text}`)
}

async function chapter(clock: string, title: string, why: string, play: () => Promise<void>): Promise<void> {
  const start = performance.now()
  const before = { ...ledger.totals }
  console.log(`\n${seconds(start - started)}  ${clock}   ${title.toUpperCase()}: ${why}`)
  try {
    await play()
  } catch (error) {
    throw new Error(`${title}: ${(error as Error).message}`)
  } finally {
    const { added, received, repeated, acked } = ledger.totals
    const changes = [added - before.added, received - before.received, repeated - before.repeated, acked - before.acked]
    rows.push([title, ...[...changes, ledger.waiting()].map(String), seconds(performance.now() - start)])
  }
}

function summary(): void {
  const { added, received, repeated, acked } = ledger.totals
  const totals = ['the day', ...[added, received, repeated, acked, ledger.waiting()].map(String), seconds(performance.now() - started)]
  console.log()
  for (const cells of [['', 'added', 'received', 'again', 'acked', 'waiting', 'took'], ...rows, totals]) {
    console.log(cells.map((cell, i) => (i === 0 ? cell.padEnd(10) : cell.padStart(10))).join(''))
  }
  console.log('\n"again": received but not acked when the socket was lost, and therefore sent a second time\n')
}

function seconds(ms: number): string {
  return `${(ms / 1000).toFixed(2).padStart(6)} s`
}

function megabytes(bytes: number): string {
  return `${(bytes / 1e6).toFixed(1)} MB`
}

try {
  await day()
} catch (error) {
  ledger.expect(false, (error as Error).message)
}
summary()
const problems = ledger.verdict()
if (problems.length === 0) console.log('nothing lost, nothing repeated, queue empty')
else console.log(`what went wrong:\n${problems.map((problem) => `  - ${problem}`).join('\n')}`)
process.exit(problems.length === 0 ? 0 : 1) // sockets that are still open must not keep a failed day alive
