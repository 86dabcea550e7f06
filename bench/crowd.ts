import { randomBytes } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { inParallel, openClient, type Client } from './client.js'

/** Many sockets that do nothing, and come back when the service was away. Runs in the generator's process. */

const OPENING = 64 // at a time
const MAX_TRIES = 10
const RETRY_MS = 1_000 // the pause of the published clients

interface Crowd {
  members: { client: Client | undefined; connectionIds: string[]; received: number }[]
  reconnect: boolean
  reconnects: number
  lastLiveAt: number
}

let crowd: Crowd | undefined

export async function openCrowd({
  url,
  sockets,
  sessions,
  reconnect = false,
}: {
  url: string
  sockets: number
  /** On each socket. */
  sessions: number
  reconnect?: boolean
}): Promise<{ ms: number }> {
  const name = randomBytes(6).toString('hex')
  const opened: Crowd = {
    members: Array.from({ length: sockets }, (_, s) => ({
      client: undefined,
      connectionIds: Array.from({ length: sessions }, (_, i) => `${name}-${s}-${i}`),
      received: 0,
    })),
    reconnect,
    reconnects: 0,
    lastLiveAt: 0,
  }
  crowd = opened
  const startedAt = performance.now()
  await inParallel([...opened.members.keys()], OPENING, async (i) => {
    for (let tries = 1; ; tries++) {
      try {
        return await join(opened, url, i)
      } catch (error) {
        if (tries === MAX_TRIES) throw error // a busy service may answer `timeout`
      }
    }
  })
  return { ms: performance.now() - startedAt }
}

async function join(opened: Crowd, url: string, i: number): Promise<void> {
  const member = opened.members[i]!
  const client: Client = await openClient(url, {
    localAddress: `127.0.0.${2 + (i % 4)}`,
    onMessages: (_connectionId, messages) => (member.received += messages.length),
    onClose() {
      if (member.client !== client) return // it was not live yet: whoever joins hears of it
      member.client = undefined
      if (opened.reconnect) void comeBack(opened, url, i)
    },
  })
  try {
    await inParallel(member.connectionIds, 32, async (connectionId) => {
      if ((await client.ask('addLiveSession', { connectionId, sessionId: 'bench' })) !== true)
        throw new Error(`${connectionId} is not live`)
    })
  } catch (error) {
    await client.close()
    throw error
  }
  if (!client.isOpen()) throw new Error('closed at once')
  member.client = client
  opened.lastLiveAt = Date.now()
}

/** Not all at the same moment, and again until it succeeds. */
async function comeBack(opened: Crowd, url: string, i: number): Promise<void> {
  for (let pauseMs = Math.random() * RETRY_MS; ; pauseMs = RETRY_MS) {
    await sleep(pauseMs)
    if (!opened.reconnect) return
    opened.reconnects++
    try {
      return await join(opened, url, i)
    } catch {
      // closed again before it was live, or nobody listens yet
    }
  }
}

/** @returns when (Date.now()) the last of them was live again, and how often they tried */
export async function crowdBack({ timeoutMs }: { timeoutMs: number }): Promise<{ lastLiveAt: number; back: number; tries: number }> {
  const { members, ...rest } = crowd!
  const back = () => members.filter(({ client }) => client?.isOpen()).length
  for (const deadline = Date.now() + timeoutMs; back() < members.length && Date.now() < deadline;) await sleep(20)
  return { lastLiveAt: crowd!.lastLiveAt, back: back(), tries: rest.reconnects }
}

/** Adds one message for each of `count` members over another socket. @returns how many did not get exactly theirs */
export async function crowdReceives({ url, count }: { url: string; count: number }): Promise<{ missing: number }> {
  const { members } = crowd!
  const step = Math.max(1, Math.floor(members.length / count))
  const chosen = members.filter((_, i) => i % step === 0)
  for (const member of chosen) member.received = 0
  const adder = await openClient(url)
  await inParallel(chosen, 32, ({ connectionIds }) =>
    adder.ask('addMessage', { connectionId: connectionIds[0], recipientDids: ['did:key:z6Mk'], payload: { ciphertext: 'are you back?' } }),
  )
  for (const deadline = Date.now() + 10_000; chosen.some(({ received }) => received === 0) && Date.now() < deadline;) await sleep(20)
  await adder.close()
  return { missing: chosen.filter(({ received }) => received !== 1).length }
}

export async function closeCrowd(): Promise<void> {
  if (!crowd) return
  crowd.reconnect = false
  await Promise.all(crowd.members.flatMap(({ client }) => (client ? [client.close()] : [])))
  crowd = undefined
}
