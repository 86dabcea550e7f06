import { once } from 'node:events'
import type { AddressInfo } from 'node:net'
import t from 'tap'
import WebSocket, { WebSocketServer } from 'ws'
import { textFrame } from '../src/text-frame.js'

/* Read by a client. That the service sends such frames, every other test sees. */

const LIMITS = [0, 1, 125, 126, 65_535, 65_536, 200_000]

const server = new WebSocketServer({ host: '127.0.0.1', port: 0 })
t.teardown(() => server.close())
await once(server, 'listening')

for (const [what, character] of Object.entries({ ASCII: 'a', 'Latin-1': 'é', 'two units': '😀' })) {
  t.test(`${what}: a frame is read as the text that it was made of, with each form of its length`, async (t) => {
    const each = Buffer.byteLength(character)
    const texts = LIMITS.map((bytes) => character.repeat(bytes / each) + 'a'.repeat(bytes % each))
    server.once('connection', (_socket, { socket: wire }) => {
      for (const text of texts) wire.write(textFrame(text))
    })
    const client = new WebSocket(`ws://127.0.0.1:${(server.address() as AddressInfo).port}`)
    t.teardown(() => client.terminate())
    const read: string[] = []
    await new Promise<void>((resolve, reject) => {
      client.on('error', reject)
      client.on('message', (data: Buffer, isBinary) => {
        t.notOk(isBinary)
        if (read.push(data.toString()) === texts.length) resolve()
      })
    })
    t.same(
      read.map((text) => Buffer.byteLength(text)),
      LIMITS,
    )
    t.ok(read.every((text, i) => text === texts[i]))
  })
}
