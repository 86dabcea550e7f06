import WebSocket from 'ws'
import type { OpenSocket, Socket } from './socket.js'

// The global WebSocket of Node 22 can send no header, so Node uses `ws` everywhere.
export const openSocket: OpenSocket = (url, apiKey) =>
  new WebSocket(url, {
    perMessageDeflate: false,
    allowSynchronousEvents: false, // who awaits an answer goes on before the next frame, as in browsers
    headers: apiKey === undefined ? {} : { authorization: `Bearer ${apiKey}` },
  }) as unknown as Socket
