import { randomUUID } from 'node:crypto'
import fastifyWebsocket from '@fastify/websocket'
import Fastify from 'fastify'
import pg from 'pg'
import { addStatement } from '../plugins/storage/add-statements.js'
import { intArray, textArray, utf8Array } from '../plugins/storage/binary-array.js'
import { createCoalescer } from '../plugins/storage/coalesce.js'
import { PLANNING } from '../plugins/storage/index.js'
import { createQuery } from '../plugins/storage/query.js'
import { textFrame } from '../src/text-frame.js'
import { tuneV8 } from '../src/v8.js'

/**
 * The least that a durable add costs: the floor, and a row for each frame. It checks nothing, knows no quota, no order, no sessions, and tells
 * nobody: what the service costs beside it is that. A process of its own.
 */
tuneV8()
const query = createQuery(new pg.Pool({ connectionString: process.env.DATABASE_URL, ...PLANNING }))
const insert = addStatement({ times: false, keys: false, claims: false, bounds: false, pushes: false, several: false, many: true })
const TAG = 1
const INSTANCE_ID = randomUUID()

interface Add {
  connectionId: string
  did: string
  frame: Buffer
}

const add = createCoalescer<Add, string>({
  ...{ atOnce: 2, maxItems: 200, maxBytes: 1024 * 1024, maxWaitingBytes: 256 * 1024 * 1024, maxWaitMs: 1_000 },
  key: ({ connectionId }) => connectionId,
  bytes: ({ frame }) => frame.length,
  async flush(adds) {
    const [row] = await query<[first: string]>(insert, [
      TAG,
      INSTANCE_ID,
      textArray(adds.map(({ connectionId }) => connectionId)),
      textArray(adds.map(({ did }) => did)),
      intArray(adds.map(({ frame }) => frame.length)),
      utf8Array(adds.map(({ frame }) => frame)), // a little more than the payload
    ])
    return adds.map((_add, i) => String(Number(row![0]) + i))
  },
})

const app = Fastify({ logger: { level: 'info' } })
await app.register(fastifyWebsocket, { options: { perMessageDeflate: false } })
app.get('/ws', { websocket: true }, (socket, request) => {
  const wire = request.raw.socket
  let isCorked = false
  socket.on('message', (frame: Buffer) => {
    const { id, params } = JSON.parse(frame.toString()) as { id: number; params: { connectionId: string; recipientDids: [string] } }
    add({ connectionId: params.connectionId, did: params.recipientDids[0], frame }, (seq) => {
      if (seq instanceof Error) throw seq
      if (!isCorked) {
        isCorked = true
        wire.cork()
        process.nextTick(() => {
          isCorked = false
          wire.uncork()
        })
      }
      wire.write(textFrame(`{"jsonrpc":"2.0","result":"${seq}-k3f9a2","id":${id}}`))
    })
  })
})
const url = await app.listen({ host: '127.0.0.1', port: 0 })
app.log.info({ api: `${url}/v1` }, 'ready')
process.once('SIGTERM', () => process.exit())
