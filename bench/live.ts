import { setTimeout as sleep } from 'node:timers/promises'
import { closedLoop, openClient, type Client, type Delivered } from './client.js'
import { latencyOf } from './measure.js'
import { addTemplate, check, closeClients, drive, newFilled, openClients, remove, type Filled, type Load, type Traffic } from './traffic.js'
import { FIRST_CONNECTION, FIRST_N } from './wire.js'

/** The load with live sessions: add, messagesReceived, removeMessages. Runs in the generator's process. */

const SETTLE_MS = 30_000

interface Mailboxes extends Filled {
  adders: Client[]
  owners: Client[]
  onArrival: (connection: number, n: number) => void
  onRemoved: (connection: number, n: number) => void
  removesRefused: number
}

let mailboxes: Mailboxes | undefined

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
