import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import type { WebSocket } from 'ws'
import { createArrivalOrder } from '../src/arrival-order.js'
import { dialect2060 } from '../src/dialect-2060.js'
import { CallError } from '../src/errors.js'
import { createJsonRpc, failure } from '../src/jsonrpc.js'
import type { Socket } from '../src/live-sessions.js'
import { createOpenRpc } from '../src/openrpc.js'
import { createWireMethods } from '../src/wire-methods.js'

const SERVICE_RESTART = 1012
const DIALECTS = { '2060': dialect2060 }

/** JSON-RPC over WebSocket, on /ws and on / (existing clients are given a bare host). */
export default async function rpcRoutes(app: FastifyInstance): Promise<void> {
  const { contract, calls, liveSessions, limits, version } = app.pickup
  const openRpc = createOpenRpc(contract, version)
  const options = {
    methods: new Map([...createWireMethods(() => openRpc), ...calls.byName]),
    maxDepth: limits.maxDepth,
    maxBatch: limits.maxBatch,
    onError: (err: unknown, method: string) => app.log.error({ err, method }, 'call failed'),
  }
  const answerPlain = createJsonRpc(options)
  const answerIn = new Map(Object.entries(DIALECTS).map(([name, dialect]) => [name, createJsonRpc({ ...options, dialect })]))
  let sockets = 0

  app.get('/ws', { websocket: true, onRequest: refuseUnknownDialect }, onConnection)
  app.route({
    method: 'GET',
    url: '/',
    schema: { hide: true },
    onRequest: refuseUnknownDialect,
    wsHandler: onConnection,
    handler: (_request, reply) => reply.redirect('/docs'),
  })

  function onConnection(webSocket: WebSocket, request: FastifyRequest): void {
    if (calls.isDraining()) return webSocket.close(SERVICE_RESTART, 'service restart')
    const { dialect } = request.query as { dialect?: string }
    const answer = (dialect && answerIn.get(dialect)) || answerPlain
    const socket: Socket = {
      id: `socket-${++sockets}`,
      get isOpen() {
        return webSocket.readyState === webSocket.OPEN
      },
      get bufferedBytes() {
        return webSocket.bufferedAmount
      },
      send: (text, onSent) => webSocket.send(text, onSent),
    }
    const caller = { socket }
    const order = createArrivalOrder()

    webSocket.on('message', (data: Buffer, isBinary: boolean) => {
      if (isBinary)
        return webSocket.send(failure('null', new CallError('invalid_request', 'Calls must be text frames with JSON; this one is binary.')))
      answer(data.toString(), caller, order).then(
        (reply) => {
          if (reply !== undefined && socket.isOpen) webSocket.send(reply)
        },
        (err: unknown) => app.log.error({ err }, 'a frame was not answered'),
      )
    })
    webSocket.on('close', () => liveSessions.socketClosed(socket))
  }
}

async function refuseUnknownDialect(request: FastifyRequest, _reply: FastifyReply): Promise<void> {
  const { dialect } = request.query as { dialect?: unknown }
  if (dialect !== undefined && !(typeof dialect === 'string' && Object.hasOwn(DIALECTS, dialect))) {
    throw new CallError('invalid_request', `Unknown dialect. There is: ${Object.keys(DIALECTS).join(', ')}.`, { field: 'dialect' })
  }
}
