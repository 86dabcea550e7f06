import { once } from 'node:events'
import type { AddressInfo } from 'node:net'
import t from 'tap'
import WebSocket, { WebSocketServer } from 'ws'
import { MAX_SHORT, shortFrames, textFrame } from '../src/text-frame.js'
import { startService } from './helpers/service.js'

/* Read by a client. That the service sends such frames, and in order, is seen at the end and by every other test. */

const LIMITS = [0, 1, 125, 126, 65_535, 65_536, 200_000]

const server = new WebSocketServer({ host: '127.0.0.1', port: 0 })
t.teardown(() => server.close())
await once(server, 'listening')

for (const [what, character] of Object.entries({ ASCII: 'a', 'Latin-1': 'é', 'two units': '😀' })) {
  t.test(`${what}: a frame is read as the text that it was made of, with each form of its length`, async (t) => {
    const each = Buffer.byteLength(character)
    const texts = LIMITS.map((bytes) => character.repeat(bytes / each) + 'a'.repeat(bytes % each))
    const isShort = (text: string) => text.length <= MAX_SHORT
    const short = texts.filter(isShort)
    const isAscii = short.every((text) => /^a*$/.test(text))
    server.once('connection', (_socket, { socket: wire }) => {
      for (const text of texts) wire.write(textFrame(text))
      const frames = shortFrames(short)
      t.equal(frames !== undefined, isAscii)
      if (frames !== undefined) wire.write(frames, 'latin1')
    })
    const client = new WebSocket(`ws://127.0.0.1:${(server.address() as AddressInfo).port}`)
    t.teardown(() => client.terminate())
    const expected = isAscii ? [...texts, ...short] : texts
    const read: string[] = []
    await new Promise<void>((resolve, reject) => {
      client.on('error', reject)
      client.on('message', (data: Buffer, isBinary) => {
        t.notOk(isBinary)
        if (read.push(data.toString()) === expected.length) resolve()
      })
    })
    t.same(
      read.map((text) => Buffer.byteLength(text)),
      expected.map((text) => Buffer.byteLength(text)),
    )
    t.ok(read.every((text, i) => text === expected[i]))
  })
}

t.test('answers of one turn come in the order in which they were made, the short and the long', async (t) => {
  const { url } = await startService(t)
  const client = new WebSocket(`${url.replace('http', 'ws')}/ws`)
  t.teardown(() => client.terminate())
  await once(client, 'open')
  const calls = ['ping', 'rpc.discover', 'ping', 'ping', 'rpc.discover', 'ping']
  const ids: number[] = []
  const all = new Promise<void>((resolve) => {
    client.on('message', (data: Buffer) => {
      if (ids.push((JSON.parse(data.toString()) as { id: number }).id) === calls.length) resolve()
    })
  })
  calls.forEach((method, id) => client.send(JSON.stringify({ jsonrpc: '2.0', method, id })))
  await all
  t.same(ids, [0, 1, 2, 3, 4, 5])
})
