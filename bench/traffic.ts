import { randomBytes } from 'node:crypto'
import { closedLoop, openClient, openLoop, type Client, type Delivered, type OnAnswer } from './client.js'
import { createLedger, noFaults, type Faults, type Ledger } from './ledger.js'
import { latencyOf, type Latency } from './measure.js'
import { createTemplate, FIRST_CONNECTION, FIRST_N, type Template } from './wire.js'

/** The load: what mediators do, and a check of each answer. Runs in the generator's process (load.ts). */

const DID = 'did:key:z6MkhaXgBZDvotDkL5257faiztiGiC2QtKLGpbnnEGta2doK'

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
export interface Filled {
  name: string
  filler: string
  ledger: Ledger
}

let filled: Filled | undefined
const fillers = new Map<number, string>()

/** Text that does not compress, as ciphertext does not. */
export function fillerOf(payloadBytes: number): string {
  const length = payloadBytes - JSON.stringify({ n: FIRST_N, ciphertext: '' }).length
  if (!fillers.has(length)) fillers.set(length, randomBytes(length).toString('base64url').slice(0, length))
  return fillers.get(length)!
}

export const newFilled = (connections: number, payloadBytes: number): Filled => ({
  name: randomBytes(6).toString('hex'),
  filler: fillerOf(payloadBytes),
  ledger: createLedger(connections),
})

export const addTemplate = ({ name, filler }: Filled): Template =>
  createTemplate(
    (id, connection, n) =>
      `{"jsonrpc":"2.0","id":${id},"method":"addMessage","params":{"connectionId":"${name}-${connection}","recipientDids":["${DID}"],"payload":{"n":${n},"ciphertext":"${filler}"}}}`,
  )

export const openClients = (urls: readonly string[], count: number) =>
  Promise.all(Array.from({ length: count }, (_, i) => openClient(urls[i % urls.length]!)))

export const closeClients = (clients: readonly Client[]) => Promise.all(clients.map((client) => client.close()))

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
export async function drive(
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

export function check({ ledger, filler }: Filled, connection: number, { id, encryptedMessage }: Delivered): boolean {
  return ledger.came(connection, Number(encryptedMessage?.n) - FIRST_N, id, encryptedMessage?.ciphertext === filler)
}

export function remove(
  client: Client,
  connectionId: string,
  taken: Delivered[],
  times: number[],
  onRefused: () => void,
  done: () => void,
): void {
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
