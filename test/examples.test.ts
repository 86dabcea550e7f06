import { spawn } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import WebSocket, { WebSocketServer } from 'ws'
import { startService } from './helpers/service.js'

const service = await startService(t)
const serviceUrl = service.url.replace('http', 'ws')

t.test("a wallet's day with two mediators loses nothing and repeats nothing", async (t) => {
  const { code, output } = await playDay(serviceUrl)
  t.equal(code, 0, output)
  t.match(output, /\nnothing lost, nothing repeated, queue empty\n$/)
})

t.test('without a service the day says so and fails', async (t) => {
  const { code, output } = await playDay('ws://127.0.0.1:1')
  t.equal(code, 1)
  t.match(output, /mediator A cannot connect to ws:\/\/127\.0\.0\.1:1/)
})

// The ledger is worth as much as the faults that it finds.
const faults: Record<string, { spoil: (messages: any[]) => any[]; found: RegExp }> = {
  lost: { spoil: (messages) => messages.slice(1), found: /came where message \d+ was next/ },
  repeated: { spoil: (messages) => [messages[0], ...messages], found: /came again although no socket was lost/ },
  'out of order': { spoil: ([first, second, ...rest]) => [second, first, ...rest], found: /came where message \d+ was next/ },
  changed: {
    spoil: ([first, ...rest]) => [{ ...first, encryptedMessage: { ...first.encryptedMessage, tag: 'AAAA' } }, ...rest],
    found: /the payload of message \d+ came back changed/,
  },
}
for (const [fault, { spoil, found }] of Object.entries(faults)) {
  t.test(`the day notices a message that was ${fault}`, async (t) => {
    const { code, output } = await playDay(await startSpoiler(t, spoil))
    t.equal(code, 1, output)
    t.match(output, found)
  })
}

function playDay(url: string): Promise<{ code: number | null; output: string }> {
  return new Promise((resolve) => {
    const script = fileURLToPath(new URL('../examples/day.ts', import.meta.url))
    const child = spawn(process.execPath, ['--import', 'tsx', script, url], { stdio: ['ignore', 'pipe', 'pipe'] })
    let output = ''
    for (const stream of [child.stdout, child.stderr]) stream.setEncoding('utf8').on('data', (text: string) => (output += text))
    child.on('close', (code) => resolve({ code, output }))
  })
}

/** Stands before the service and spoils every batch of several messages. @returns its URL */
async function startSpoiler(t: { teardown(end: () => unknown): void }, spoil: (messages: any[]) => any[]): Promise<string> {
  const server = new WebSocketServer({ port: 0, host: '127.0.0.1' })
  server.on('connection', (client) => {
    const upstream = new WebSocket(serviceUrl)
    const early: string[] = []
    client.on('message', (data: Buffer) =>
      upstream.readyState === WebSocket.OPEN ? upstream.send(data.toString()) : early.push(data.toString()),
    )
    upstream.on('open', () => early.forEach((text) => upstream.send(text)))
    upstream.on('message', (data: Buffer) => {
      const frame = JSON.parse(data.toString())
      if (Array.isArray(frame.result) && frame.result.length > 1) frame.result = spoil(frame.result)
      client.send(JSON.stringify(frame))
    })
    client.on('close', () => upstream.terminate())
  })
  await new Promise((resolve) => server.once('listening', resolve))
  t.teardown(() => server.close())
  return `ws://127.0.0.1:${(server.address() as { port: number }).port}`
}
