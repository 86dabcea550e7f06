import { randomBytes } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import pg from 'pg'
import { closedLoop, openClient, openLoop, type Client, type Delivered, type OnAnswer } from './client.js'
import { createLedger, noFaults, type Faults, type Ledger } from './ledger.js'
import { latencyOf, type Latency } from './measure.js'
import { createTemplate, FIRST_CONNECTION, FIRST_N, type Template } from './wire.js'

/** The load: what mediators do, and a check of each answer. Runs in the generator's process (load.ts). */

const DID = 'did:key:z6MkhaXgBZDvotDkL5257faiztiGiC2QtKLGpbnnEGta2doK'
const SETTLE_MS = 30_000

export interface Load {
  sockets: number
  /** For each socket. */
  inFlight: number
  messages: number
  connections: number
  payloadBytes: number
  /** Open loop at this rate; absent: as fast as the answers come. */
  perSecond?: number
}

export interface Traffic {
  messages: number
  /** From the first call to the last answer. */
  ms: number
  latencies: Record<string, Latency>
  faults: Faults
  /** Calls that were answered with an error, for example `timeout`. Removes are sent again. */
  refused: number
  /** Open loop: how late the calls left (p99), which the latencies contain. */
  lateMs?: number
}

/** Messages that wait in the queues, for `drain`. */
interface Filled {
  name: string
  filler: string
  ledger: Ledger
}

interface Mailboxes extends Filled {
  adders: Client[]
  owners: Client[]
  onArrival: (connection: number, n: number) => void
  onRemoved: (connection: number, n: number) => void
  removesRefused: number
}

let filled: Filled | undefined
let mailboxes: Mailboxes | undefined
const fillers = new Map<number, string>()

/** Text that does not compress, as ciphertext does not. */
function fillerOf(payloadBytes: number): string {
  const length = payloadBytes - JSON.stringify({ n: FIRST_N, ciphertext: '' }).length
  if (!fillers.has(length)) fillers.set(length, randomBytes(length).toString('base64url').slice(0, length))
  return fillers.get(length)!
}

const newFilled = (connections: number, payloadBytes: number): Filled => ({
  name: randomBytes(6).toString('hex'),
  filler: fillerOf(payloadBytes),
  ledger: createLedger(connections),
})

const addTemplate = ({ name, filler }: Filled): Template =>
  createTemplate(
    (id, connection, n) =>
      `{"jsonrpc":"2.0","id":${id},"method":"addMessage","params":{"connectionId":"${name}-${connection}","recipientDids":["${DID}"],"payload":{"n":${n},"ciphertext":"${filler}"}}}`,
  )

const openClients = (urls: readonly string[], count: number) =>
  Promise.all(Array.from({ length: count }, (_, i) => openClient(urls[i % urls.length]!)))

const closeClients = (clients: readonly Client[]) => Promise.all(clients.map((client) => client.close()))

/** Connections belong to sockets, so that the order of their adds is known. */
const connectionOf = (socket: number, k: number, sockets: number, connections: number) =>
  socket + sockets * (k % Math.floor(connections / sockets))

export async function ping({
  url,
  sockets,
  inFlight,
  messages,
}: { url: string } & Omit<Load, 'connections' | 'payloadBytes'>): Promise<Traffic> {
  const clients = await openClients([url], sockets)
  const template = createTemplate((id) => `{"jsonrpc":"2.0","id":${id},"method":"ping"}`)
  const times: number[] = []
  const startedAt = performance.now()
  await closedLoop(clients, inFlight, messages, (client, _socket, _k, done) => {
    const sentAt = performance.now()
    client.call(template, 0, 0, (result, error) => {
      if (result !== 'pong') throw new Error(`ping was answered with ${JSON.stringify(result ?? error)}`)
      times.push(performance.now() - sentAt)
      done()
    })
  })
  const ms = performance.now() - startedAt
  await closeClients(clients)
  return { messages, ms, latencies: { ping: latencyOf(times) }, faults: noFaults(), refused: 0 }
}

/** What was added waits for `drain`, unless `onlyAnswers` (nobody keeps it, as at the floor). */
export async function add({ urls, onlyAnswers = false, ...load }: { urls: string[]; onlyAnswers?: boolean } & Load): Promise<Traffic> {
  const into = newFilled(load.connections, load.payloadBytes)
  const clients = await openClients(urls, load.sockets)
  const template = addTemplate(into)
  const times: number[] = []
  let refused = 0
  const startedAt = performance.now()
  const lateMs = await drive(clients, load, (client, connection, sentAt, done) => {
    const n = into.ledger.sent(connection)
    client.call(template, connection, n, (id, error) => {
      times.push(performance.now() - sentAt)
      if (typeof id === 'string') into.ledger.answered(connection, n, id)
      else {
        if (!error?.data.retryable) throw new Error(`addMessage was answered with ${JSON.stringify(error ?? id)}`)
        refused++
        into.ledger.refused(connection, n)
      }
      done()
    })
  })
  const ms = performance.now() - startedAt
  await closeClients(clients)
  if (!onlyAnswers) filled = into
  return { messages: load.messages, ms, latencies: { add: latencyOf(times) }, faults: noFaults(), refused, lateMs }
}

/** Messages in turn over the connections, in a closed or an open loop. Resolves when all are done, with how late the open loop was. */
async function drive(
  clients: readonly Client[],
  { inFlight, messages, connections, perSecond }: Load,
  start: (client: Client, connection: number, sentAt: number, done: () => void) => void,
): Promise<number | undefined> {
  const { length } = clients
  if (perSecond === undefined) {
    await closedLoop(clients, inFlight, messages, (client, socket, k, done) =>
      start(client, connectionOf(socket, k, length, connections), performance.now(), done),
    )
    return undefined
  }
  let done = 0
  let onDone = () => {}
  const lateMs = await openLoop(perSecond, messages, (k, dueAt) => {
    const socket = k % length
    start(clients[socket]!, connectionOf(socket, Math.floor(k / length), length, connections), dueAt, () => {
      done++
      onDone()
    })
  })
  await new Promise<void>((resolve) => {
    onDone = () => done === messages && resolve()
    onDone()
  })
  return lateMs
}

/** Takes and removes what the last `add` left, page by page, as Pickup V2 does, and checks that it is all there. */
export async function drain({
  url,
  sockets,
  inFlight,
  limit,
}: {
  url: string
  sockets: number
  inFlight: number
  limit: number
}): Promise<Traffic> {
  if (!filled) throw new Error('nothing was added')
  const from = filled
  filled = undefined
  const clients = await openClients([url], sockets)
  const template = createTemplate(
    (id, connection) =>
      `{"jsonrpc":"2.0","id":${id},"method":"takeFromQueue","params":{"connectionId":"${from.name}-${connection}","limit":${limit}}}`,
  )
  const times: Record<'take' | 'remove', number[]> = { take: [], remove: [] }
  let messages = 0
  let refused = 0
  const startedAt = performance.now()
  await closedLoop(clients, inFlight, from.ledger.connections, (client, socket, k, done) => {
    const connection = socket + clients.length * k
    let missing = from.ledger.missing(connection)
    const take = () => {
      const sentAt = performance.now()
      client.call(template, connection, 0, (taken: Delivered[] | undefined, error) => {
        times.take.push(performance.now() - sentAt)
        if (!taken) {
          if (!error?.data.retryable) throw new Error(`takeFromQueue was answered with ${JSON.stringify(error)}`)
          refused++
          return take()
        }
        if (taken.length === 0) return done() // what is missing is found by the ledger
        for (const message of taken) if (check(from, connection, message)) missing--
        messages += taken.length
        remove(
          client,
          `${from.name}-${FIRST_CONNECTION + connection}`,
          taken,
          times.remove,
          () => refused++,
          () => (missing > 0 ? take() : done()),
        )
      })
    }
    if (missing > 0) take()
    else done()
  })
  const ms = performance.now() - startedAt
  await closeClients(clients)
  return {
    messages,
    ms,
    latencies: { take: latencyOf(times.take), remove: latencyOf(times.remove) },
    faults: from.ledger.faults(),
    refused,
  }
}

function check({ ledger, filler }: Filled, connection: number, { id, encryptedMessage }: Delivered): boolean {
  return ledger.came(connection, Number(encryptedMessage?.n) - FIRST_N, id, encryptedMessage?.ciphertext === filler)
}

function remove(client: Client, connectionId: string, taken: Delivered[], times: number[], onRefused: () => void, done: () => void): void {
  const sentAt = performance.now()
  const onAnswer: OnAnswer = (result, error) => {
    times.push(performance.now() - sentAt)
    if (result === null) return done()
    if (!error?.data.retryable) throw new Error(`removeMessages was answered with ${JSON.stringify(error ?? result)}`)
    onRefused()
    remove(client, connectionId, taken, times, onRefused, done)
  }
  client.callText('removeMessages', { connectionId, messageIds: taken.map(({ id }) => id) }, onAnswer)
}

/** Connections with live sessions, whose owners remove at once what they get. */
export async function openMailboxes(options: {
  addUrl: string
  liveUrl: string
  sockets: number
  connections: number
  payloadBytes: number
}): Promise<void> {
  const { addUrl, liveUrl, sockets, connections } = options
  const boxes: Mailboxes = {
    ...newFilled(connections, options.payloadBytes),
    adders: await openClients([addUrl], sockets),
    owners: [],
    onArrival: () => {},
    onRemoved: () => {},
    removesRefused: 0,
  }
  mailboxes = boxes
  boxes.owners = await Promise.all(
    Array.from({ length: sockets }, async () => {
      const owner: Client = await openClient(liveUrl, { onMessages: (connectionId, messages) => receive(owner, connectionId, messages) })
      return owner
    }),
  )
  await closedLoop(boxes.owners, 16, connections, (owner, socket, k, done) => {
    const params = { connectionId: `${boxes.name}-${FIRST_CONNECTION + socket + sockets * k}`, sessionId: 'bench' }
    owner.callText('addLiveSession', params, (result, error) => {
      if (result !== true) throw new Error(`addLiveSession was answered with ${JSON.stringify(error ?? result)}`)
      done()
    })
  })

  function receive(owner: Client, connectionId: string, messages: Delivered[]): void {
    const connection = connectionId.startsWith(boxes.name) ? Number(connectionId.slice(boxes.name.length + 1)) - FIRST_CONNECTION : -1
    const fresh = messages
      .filter((message) => check(boxes, connection, message))
      .map(({ encryptedMessage }) => encryptedMessage.n - FIRST_N)
    for (const n of fresh) boxes.onArrival(connection, n)
    remove(
      owner,
      connectionId,
      messages,
      [],
      () => boxes.removesRefused++,
      () => {
        for (const n of fresh) boxes.onRemoved(connection, n)
      },
    )
  }
}

/** add → messagesReceived → removeMessages. A message is done when its add and its remove are answered. */
export async function day(load: Omit<Load, 'connections' | 'payloadBytes' | 'sockets'>): Promise<Traffic> {
  if (!mailboxes) throw new Error('no mailboxes are open')
  const boxes = mailboxes
  const template = addTemplate(boxes)
  const times: Record<'add' | 'messagesReceived', number[]> = { add: [], messagesReceived: [] }
  const flying = new Map<string, { sentAt: number; left: number; done: () => void }>()
  const keyOf = (connection: number, n: number) => `${connection} ${n}`
  const part = (connection: number, n: number) => {
    const message = flying.get(keyOf(connection, n))
    if (!message || --message.left > 0) return
    flying.delete(keyOf(connection, n))
    message.done()
  }
  let refused = 0
  boxes.removesRefused = 0
  boxes.onArrival = (connection, n) => {
    const message = flying.get(keyOf(connection, n))
    if (message) times.messagesReceived.push(performance.now() - message.sentAt)
  }
  boxes.onRemoved = part
  let lastDoneAt = 0
  const startedAt = performance.now()
  const all = drive(
    boxes.adders,
    { ...load, connections: boxes.ledger.connections, payloadBytes: 0, sockets: boxes.adders.length },
    (client, connection, sentAt, done) => {
      const n = boxes.ledger.sent(connection)
      const finish = () => {
        lastDoneAt = performance.now()
        done()
      }
      flying.set(keyOf(connection, n), { sentAt, left: 2, done: finish })
      client.call(template, connection, n, (id, error) => {
        times.add.push(performance.now() - sentAt)
        if (typeof id === 'string') {
          boxes.ledger.answered(connection, n, id)
          return part(connection, n)
        }
        if (!error?.data.retryable) throw new Error(`addMessage was answered with ${JSON.stringify(error ?? id)}`)
        refused++
        boxes.ledger.refused(connection, n)
        flying.delete(keyOf(connection, n))
        finish()
      })
    },
  )
  const lateMs = await Promise.race([all, stalled(() => lastDoneAt)])
  return {
    messages: load.messages,
    ms: lastDoneAt - startedAt,
    latencies: { add: latencyOf(times.add), messagesReceived: latencyOf(times.messagesReceived) },
    faults: boxes.ledger.faults(),
    refused: refused + boxes.removesRefused,
    lateMs,
  }
}

/** Nothing was done for so long that what is missing counts as lost. */
async function stalled(lastDoneAt: () => number): Promise<undefined> {
  const startedAt = performance.now()
  while (performance.now() - Math.max(startedAt, lastDoneAt()) < SETTLE_MS) await sleep(500, undefined, { ref: false })
  return undefined
}

export async function closeMailboxes(): Promise<void> {
  await closeClients([...(mailboxes?.adders ?? []), ...(mailboxes?.owners ?? [])])
  mailboxes = undefined
}

/** The commit of one row as large as a message: what the disk and Postgres take without us. One at a time, at this rate. */
export async function commits({
  databaseUrl,
  perSecond,
  messages,
  payloadBytes,
}: {
  databaseUrl: string
  perSecond: number
  messages: number
  payloadBytes: number
}): Promise<Latency> {
  const client = new pg.Client(databaseUrl)
  await client.connect()
  await client.query('CREATE TABLE IF NOT EXISTS bench_commits (payload text)')
  const insert = { name: 'insert', text: 'INSERT INTO bench_commits VALUES ($1)', values: [fillerOf(payloadBytes)] }
  const times: number[] = []
  let last = Promise.resolve()
  await openLoop(perSecond, messages, () => {
    last = last.then(async () => {
      const sentAt = performance.now()
      await client.query(insert)
      times.push(performance.now() - sentAt)
    })
  })
  await last
  await client.query('TRUNCATE bench_commits')
  await client.end()
  return latencyOf(times)
}

/** One call after the other. Adds must be answered with an id each, everything else always with the same. */
export async function inTurn({ url, method, params, calls }: { url: string; method: string; params: object; calls: number }): Promise<{
  us: number
  answer: unknown
}> {
  const client = await openClient(url)
  const answers = new Set<string>()
  const times: number[] = []
  for (let i = 0; i < calls; i++) {
    const sentAt = performance.now()
    const answer = await client.ask(method, params)
    times.push((performance.now() - sentAt) * 1_000)
    answers.add(JSON.stringify(answer))
  }
  await client.close()
  if (answers.size !== (method === 'addMessage' ? calls : 1)) throw new Error(`${method} had ${answers.size} answers to ${calls} calls`)
  return { us: latencyOf(times).p50, answer: JSON.parse([...answers].at(-1)!) }
}
