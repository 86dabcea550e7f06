import type { IncomingMessage } from 'node:http'
import type { Socket } from 'node:net'
import fastifyWebsocket from '@fastify/websocket'
import fp from 'fastify-plugin'
import type { WebSocket } from 'ws'
import type { Config } from '../src/config.js'

/** [RFC 6455 7.4.1, IANA registry] Service restart: existing clients reconnect on it, and never on 1000. */
const SERVICE_RESTART = 1012
/** [IANA registry] Try again later. */
const TRY_AGAIN_LATER = 1013
const CLOSE_TIMEOUT_MS = 2_000

/**
 * WebSockets with limits, and the orderly drain: finish the calls that run (bounded by their deadline), end all live
 * sessions in one statement, close the sockets and wait for them. The stores close afterwards, in `onClose`.
 */
export default fp<{ config: Config }>(
  async (app, { config }) => {
    await app.register(fastifyWebsocket, {
      options: { maxPayload: config.limits.maxFrameBytes, perMessageDeflate: false },
      // Its own does not wait for the sockets: the store would close before their `close` handlers ran.
      preClose: (done) => done(),
      errorHandler: (error, socket) => {
        // A frame that is too large or not a WebSocket's: ws has sent the close code (1009, 1002, 1007) by itself.
        app.log.debug({ reason: error.message }, 'socket failed')
        if (socket.readyState === socket.OPEN) socket.terminate()
      },
    })

    app.addHook('preClose', async () => {
      // Who comes now is refused by the system, at no cost to those who wait for their answers.
      app.server.close()
      const { calls, administration, liveSessions } = app.pickup
      await calls.drain()
      await liveSessions.closeAll().catch((err: unknown) => app.log.warn({ err }, 'could not end the live sessions, their lease will'))
      const { clients } = app.websocketServer
      while (clients.size > 0) await Promise.all([...clients].map((socket) => closeSocket(socket, SERVICE_RESTART, 'service restart')))
      // Those that never sent a request do not count as idle, and the server waits for them.
      void administration.drain().then(() => setTimeout(() => app.server.closeAllConnections(), CLOSE_TIMEOUT_MS).unref())
    })
    // Fastify answers 503 and then leaves the socket to a peer that may never close it.
    app.server.on('upgrade', (_request: IncomingMessage, socket: Socket) => {
      if (app.pickup.calls.isDraining()) socket.destroySoon()
    })

    const tcp = new WeakMap<WebSocket, Socket>()
    const interval = Math.min(1_000, config.PING_INTERVAL_MS, config.PONG_TIMEOUT_MS, config.STALL_TIMEOUT_MS) / 2
    const timer = setInterval(reap, interval)
    app.addHook('onClose', async () => clearInterval(timer))

    interface State {
      heardAt: number
      /** Since it was looked at last. So that the time is not asked for with each message. */
      isHeard: boolean
      pingedAt: number | undefined
      /** When what waits to be sent was last seen to become less, or there was nothing. */
      sentAt: number
      sentBytes: number
    }
    const states = new WeakMap<WebSocket, State>()
    app.websocketServer.on('connection', (socket: WebSocket, request: IncomingMessage) => {
      const now = performance.now()
      const state: State = { heardAt: now, isHeard: false, pingedAt: undefined, sentAt: now, sentBytes: 0 }
      states.set(socket, state)
      tcp.set(socket, request.socket)
      const alive = () => (state.isHeard = true)
      socket.on('pong', alive).on('message', alive).on('ping', alive)
    })

    function reap(): void {
      const now = performance.now()
      for (const socket of app.websocketServer.clients) {
        const state = states.get(socket)
        if (!state || socket.readyState !== socket.OPEN) continue
        reapSilent(socket, state, now)
        reapStalled(socket, state, now)
      }
    }

    /** A socket whose other end vanished without a word would stay open for ever, and its mail would wait for nobody. */
    function reapSilent(socket: WebSocket, state: State, now: number): void {
      // While it is paused it is us who do not listen.
      if (state.isHeard || socket.isPaused) {
        state.isHeard = false
        state.heardAt = now
        state.pingedAt = undefined
      } else if (state.pingedAt !== undefined) {
        if (now - state.pingedAt > config.PONG_TIMEOUT_MS) socket.terminate()
      } else if (now - state.heardAt > config.PING_INTERVAL_MS) {
        state.pingedAt = now
        socket.ping()
      }
    }

    /** One that talks and does not read would keep what it was sent in our memory. */
    function reapStalled(socket: WebSocket, state: State, now: number): void {
      const sentBytes = sent(tcp.get(socket))
      if (socket.bufferedAmount === 0 || sentBytes !== state.sentBytes) {
        state.sentAt = now
        state.sentBytes = sentBytes
      } else if (now - state.sentAt > config.STALL_TIMEOUT_MS) {
        app.log.warn({ unsentBytes: socket.bufferedAmount }, 'a socket does not take what it is sent, closing it')
        void closeSocket(socket, TRY_AGAIN_LATER, 'does not read')
      }
    }
  },
  { name: 'websocket', dependencies: ['pickup'] },
)

/** Bytes that the system took from us. A large answer is one write, and counts as unsent as a whole until its end. */
function sent(socket: Socket | undefined): number {
  const { bytesWritten = 0, writeQueueSize = 0 } =
    (socket as { _handle?: { bytesWritten?: number; writeQueueSize?: number } | null } | undefined)?._handle ?? {}
  return bytesWritten - writeQueueSize
}

/** Asks the other end to close, and does it ourselves when it does not. Resolves when it is closed. */
export function closeSocket(socket: WebSocket, code: number, reason: string): Promise<void> {
  socket.resume() // its answer must be read
  socket.close(code, reason)
  return new Promise((resolve) => {
    if (socket.readyState === socket.CLOSED) return resolve()
    const timer = setTimeout(() => socket.terminate(), CLOSE_TIMEOUT_MS)
    socket.once('close', () => {
      clearTimeout(timer)
      resolve()
    })
  })
}
