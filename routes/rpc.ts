import { performance } from 'node:perf_hooks' // docs/decisions/0008, “The globals of Node”
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import type { WebSocket } from 'ws'
import { createArrivalOrder } from '../src/arrival-order.js'
import { dialect2060 } from '../src/dialect-2060.js'
import { CallError } from '../src/errors.js'
import { createIntake } from '../src/intake.js'
import { createJsonRpc, failure, type Method } from '../src/jsonrpc.js'
import type { Socket } from '../src/delivery.js'
import { createOpenRpc } from '../src/openrpc.js'
import { MAX_SHORT, shortFrames, textFrame } from '../src/text-frame.js'
import { createWireMethods } from '../src/wire-methods.js'

const SERVICE_RESTART = 1012
// A socket that has this much unsent makes no more calls until it has read some.
const MAX_BUFFERED_BYTES = 1024 * 1024
// With less than this unsent, or a larger answer, it is not waited for that an answer leaves: the callback would cost more than the
// rest of sending.
const FEW_BUFFERED_BYTES = 256 * 1024
const SMALL_ANSWER = 64 * 1024
const DIALECTS = { '2060': dialect2060 }

/** JSON-RPC over WebSocket, on /ws and on / (existing clients are given a bare host). */
export default async function rpcRoutes(app: FastifyInstance): Promise<void> {
  const { contract, calls, liveSessions, limits, maxCallsInFlight, version } = app.pickup
  const openRpc = createOpenRpc(contract, version)
  const options = {
    methods: new Map([...createWireMethods(() => openRpc), ...calls.byName]),
    maxDepth: limits.maxDepth,
    maxBatch: limits.maxBatch,
    onError: (err: unknown, method: string) => app.log.error({ err, method }, 'call failed'),
  }
  const answerPlain = createJsonRpc(options)
  const answerIn = new Map(Object.entries(DIALECTS).map(([name, dialect]) => [name, createJsonRpc({ ...options, dialect })]))
  const refuse = createJsonRpc({ ...options, methods: new Map([...options.methods.keys()].map((name) => [name, overloaded])) })
  let sockets = 0

  app.get('/ws', { websocket: true, onRequest: refuseUnknownDialect }, onConnection)
  app.route({
    method: 'GET',
    url: '/',
    config: { access: 'open' }, // the redirect; a socket always needs a key
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
      send,
    }
    const wire = request.raw.socket
    let isCorked = false
    let gathered: string[] = [] // short texts
    const caller = { socket, client: request.client }
    const order = createArrivalOrder()
    const intake = createIntake({
      maxCalls: maxCallsInFlight,
      now: () => performance.now(),
      answer: (frame, reply, onCalls, waitedMs) => answer(frame, waitedMs > 0 ? { ...caller, waitedMs } : caller, reply, onCalls, order),
      refuse: (frame, reply, onCalls) => refuse(frame, caller, reply, onCalls),
      send(text, onSent) {
        if (text.length > SMALL_ANSWER || webSocket.bufferedAmount > FEW_BUFFERED_BYTES) return send(text, onSent)
        send(text)
        onSent()
      },
      isClogged: () => webSocket.bufferedAmount >= MAX_BUFFERED_BYTES,
      pause: () => webSocket.pause(),
      resume: () => webSocket.resume(),
    })

    /** What is sent in one turn of the event loop, a batch of answers mostly, leaves in one system call. */
    function send(text: string, onSent?: () => void): void {
      if (!socket.isOpen) return onSent && process.nextTick(onSent)
      if (!isCorked) {
        isCorked = true
        wire.cork()
        process.nextTick(uncork)
      }
      if (text.length <= MAX_SHORT && !onSent) {
        gathered.push(text)
        return
      }
      writeGathered()
      wire.write(textFrame(text), onSent)
    }

    function writeGathered(): void {
      if (gathered.length === 0) return
      const texts = gathered
      gathered = []
      const frames = shortFrames(texts)
      if (frames !== undefined) wire.write(frames, 'latin1')
      else for (const text of texts) wire.write(textFrame(text))
    }

    function uncork(): void {
      isCorked = false
      writeGathered()
      wire.uncork()
    }

    webSocket.on('message', (data: Buffer, isBinary: boolean) => {
      // A client that was told to close may go on calling, for as long as it does not close.
      if (!socket.isOpen) return
      if (isBinary)
        return webSocket.send(failure('null', new CallError('invalid_request', 'Calls must be text frames with JSON; this one is binary.')))
      intake.accept(data)
    })
    webSocket.on('close', () => {
      intake.close()
      liveSessions.socketClosed(socket)
    })
  }
}

/** Stands in for every method when the calls of a socket do not come to an end. */
const overloaded: Method = {
  run(_params, _payload, _caller, ended) {
    process.nextTick(ended, new CallError('overloaded', 'The calls before this one take too long; it was not begun. Try again.'))
  },
}

async function refuseUnknownDialect(request: FastifyRequest, _reply: FastifyReply): Promise<void> {
  const { dialect } = request.query as { dialect?: unknown }
  if (dialect !== undefined && !(typeof dialect === 'string' && Object.hasOwn(DIALECTS, dialect))) {
    throw new CallError('invalid_request', `Unknown dialect. There is: ${Object.keys(DIALECTS).join(', ')}.`, { field: 'dialect' })
  }
}
