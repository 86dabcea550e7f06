import fastifyWebsocket from '@fastify/websocket'
import fp from 'fastify-plugin'
import type { WebSocket } from 'ws'
import type { Config } from '../src/config.js'

/** [RFC 6455 7.4.1, IANA registry] Service restart: existing clients reconnect on it, and never on 1000. */
const SERVICE_RESTART = 1012
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
      await app.pickup.calls.drain()
      await app.pickup.liveSessions
        .closeAll()
        .catch((err: unknown) => app.log.warn({ err }, 'could not end the live sessions, their lease will'))
      const sockets = [...app.websocketServer.clients]
      for (const socket of sockets) socket.close(SERVICE_RESTART, 'service restart')
      await Promise.all(sockets.map(closed))
    })

    const interval = Math.min(1_000, config.PING_INTERVAL_MS, config.PONG_TIMEOUT_MS) / 2
    const timer = setInterval(reap, interval)
    app.addHook('onClose', async () => clearInterval(timer))

    const heard = new WeakMap<WebSocket, { at: number; pingedAt: number | undefined }>()
    app.websocketServer.on('connection', (socket: WebSocket) => {
      const state = { at: performance.now(), pingedAt: undefined as number | undefined }
      heard.set(socket, state)
      const alive = () => {
        state.at = performance.now()
        state.pingedAt = undefined
      }
      socket.on('pong', alive).on('message', alive).on('ping', alive)
    })

    /** A socket whose other end vanished without a word would stay open for ever, and its mail would wait for nobody. */
    function reap(): void {
      const now = performance.now()
      for (const socket of app.websocketServer.clients) {
        const state = heard.get(socket)
        if (!state) continue
        if (state.pingedAt !== undefined) {
          if (now - state.pingedAt > config.PONG_TIMEOUT_MS) socket.terminate()
        } else if (now - state.at > config.PING_INTERVAL_MS) {
          state.pingedAt = now
          socket.ping()
        }
      }
    }
  },
  { name: 'websocket', dependencies: ['pickup'] },
)

function closed(socket: WebSocket): Promise<void> {
  return new Promise((resolve) => {
    if (socket.readyState === socket.CLOSED) return resolve()
    const timer = setTimeout(() => socket.terminate(), CLOSE_TIMEOUT_MS)
    socket.once('close', () => {
      clearTimeout(timer)
      resolve()
    })
  })
}
