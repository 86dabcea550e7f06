import fastifyWebsocket from '@fastify/websocket'
import Fastify from 'fastify'

/** The ceiling of the transport: parses each addMessage and answers, and does nothing with it. A process of its own. */
const app = Fastify({ logger: { level: 'info' } })
await app.register(fastifyWebsocket, { options: { perMessageDeflate: false } })
let messages = 0
app.get('/ws', { websocket: true }, (socket) => {
  socket.on('message', (data: Buffer) => {
    const { id } = JSON.parse(data.toString()) as { id: number }
    socket.send(JSON.stringify({ jsonrpc: '2.0', result: `${++messages}-k3f9a2`, id }))
  })
})
const url = await app.listen({ host: '127.0.0.1', port: 0 })
app.log.info({ api: `${url}/v1` }, 'ready')
process.once('SIGTERM', () => process.exit())
