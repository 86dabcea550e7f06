import type { OpenSocket, Socket } from './socket.js'

/** Browsers and React Native: their own WebSocket, and no dependency. build.ts puts it in the place of socket-ws.ts. */
export const openSocket: OpenSocket = (url, apiKey) => {
  const { WebSocket } = globalThis as unknown as { WebSocket?: new (url: string) => Socket }
  if (!WebSocket) throw new TypeError('There is no global WebSocket here.')
  if (apiKey !== undefined) {
    throw new TypeError('apiKey needs Node: a WebSocket of a browser sends no Authorization header, and a URL is no place for a key.')
  }
  return new WebSocket(url)
}
