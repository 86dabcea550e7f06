import type { OpenSocket, Socket } from './socket.js'

/**
 * One socket to the service, for ever: when it is lost the next URL is tried, after a while, again and again.
 *
 *   idle        nothing was asked yet
 *   connecting  a socket is being opened; not open after `connectTimeoutMs` counts as lost
 *   open        frames go both ways; a silent peer is pinged, and lost when it stays silent
 *   waiting     lost; the next attempt begins after a random part of a time that doubles (full jitter), so that many
 *               clients of a restarted service do not come back at the same moment
 *   closed      for good
 *
 * Only `socket` counts: whatever a former one still brings is dropped.
 */

const FIRST_DELAY_MS = 100
// A call that is unanswered for this long is a reason to ping: the service answers every call within 1.5 s.
const UNANSWERED_MS = 2_000
const CHECK_MS = 500
const PING = '{"jsonrpc":"2.0","id":"ping","method":"ping"}'
const NO_CLOSE_FRAME = 1006 // [RFC 6455 7.1.5]

export interface ConnectionOptions {
  urls: readonly string[]
  apiKey: string | undefined
  openSocket: OpenSocket
  connectTimeoutMs: number
  maxReconnectDelayMs: number
  pingIntervalMs: number
  pongTimeoutMs: number
  /** Whether somebody waits for an answer. */
  isWaiting(): boolean
  onOpen(url: string): void
  onFrame(frame: unknown): void
  /** The socket was lost; `wasOpen` when it had been open. */
  onLost(lost: { url: string; code: number; reason: string; wasOpen: boolean }): void
  onWaiting(next: { url: string; delayMs: number; attempt: number; reason: string }): void
}

export interface Connection {
  /** Begins, unless it has. */
  start(): void
  send(text: string): void
  readonly isOpen: boolean
  readonly bufferedBytes: number
  /** Why there is no socket now. */
  readonly lastFailure: string | undefined
  close(): void
}

export function createConnection(options: ConnectionOptions): Connection {
  const { urls, apiKey, openSocket, connectTimeoutMs, maxReconnectDelayMs, pingIntervalMs, pongTimeoutMs } = options
  let state: 'idle' | 'connecting' | 'open' | 'waiting' | 'closed' = 'idle'
  let socket: Socket | undefined
  let turn = 0
  let failures = 0 // since the last frame of a service: being let in and shown out at once is a failure too
  let lastFailure: string | undefined
  let heardAt = 0
  let pingedAt: number | undefined
  let timer: ReturnType<typeof setTimeout> | undefined
  let watchdog: ReturnType<typeof setInterval> | undefined

  return {
    start() {
      if (state === 'idle') connect()
    },
    send: (text) => socket?.send(text),
    get isOpen() {
      return state === 'open'
    },
    get bufferedBytes() {
      return socket?.bufferedAmount ?? 0
    },
    get lastFailure() {
      return lastFailure
    },
    close() {
      if (state === 'closed') return
      const mine = socket
      const wasOpen = state === 'open'
      state = 'closed'
      clearTimers()
      socket = undefined
      if (!mine) return
      mine.onopen = mine.onmessage = mine.onclose = null
      mine.onerror = () => {} // `ws` throws where nobody listens
      if (wasOpen) mine.close(1000)
      else abandon(mine)
    },
  }

  function connect(): void {
    state = 'connecting'
    const url = urls[turn % urls.length]!
    const mine = openSocket(url, apiKey)
    let reason = ''
    socket = mine
    timer = setTimeout(() => lose(mine, url, NO_CLOSE_FRAME, `not open after ${connectTimeoutMs} ms`), connectTimeoutMs)
    mine.onerror = ({ message }) => (reason = message ?? '')
    mine.onclose = (event) => lose(mine, url, event.code, event.reason || reason)
    mine.onopen = () => {
      if (socket !== mine) return
      clearTimeout(timer)
      state = 'open'
      heardAt = now()
      watchdog = setInterval(() => watch(mine, url), CHECK_MS)
      ping(mine)
      options.onOpen(url)
    }
    mine.onmessage = ({ data }) => {
      if (socket !== mine) return
      heardAt = now()
      pingedAt = undefined
      failures = 0
      lastFailure = undefined
      let frame
      try {
        frame = JSON.parse(String(data)) as unknown
      } catch {
        return // not of a service of this kind; who waits is told by its deadline
      }
      if ((frame as { id?: unknown } | null)?.id !== 'ping') options.onFrame(frame)
    }
  }

  function watch(mine: Socket, url: string): void {
    const silentMs = now() - heardAt
    if (pingedAt !== undefined) {
      if (now() - pingedAt > pongTimeoutMs) lose(mine, url, NO_CLOSE_FRAME, `silent for ${Math.round(silentMs)} ms`)
    } else if (silentMs > (options.isWaiting() ? Math.min(UNANSWERED_MS, pingIntervalMs) : pingIntervalMs)) {
      ping(mine)
    }
  }

  function ping(mine: Socket): void {
    pingedAt = now()
    mine.send(PING)
  }

  function lose(mine: Socket, url: string, code: number, reason: string): void {
    if (socket !== mine) return
    const wasOpen = state === 'open'
    socket = undefined
    state = 'waiting'
    clearTimers()
    abandon(mine)
    lastFailure = `${code}${reason ? ` ${reason}` : ''}`
    turn++
    // All URLs are tried before the time doubles.
    const delayMs = Math.random() * Math.min(maxReconnectDelayMs, FIRST_DELAY_MS * 2 ** Math.floor(failures / urls.length))
    failures = Math.min(failures + 1, 1_000)
    timer = setTimeout(connect, delayMs)
    options.onLost({ url, code, reason, wasOpen })
    options.onWaiting({ url: urls[turn % urls.length]!, delayMs, attempt: failures, reason: lastFailure })
  }

  function abandon(mine: Socket): void {
    mine.onerror = () => {}
    if (mine.terminate) mine.terminate()
    else mine.close()
  }

  function clearTimers(): void {
    clearTimeout(timer)
    clearInterval(watchdog)
    pingedAt = undefined
  }
}

/** Grows evenly; a clock that is set must not look like silence. */
const now = (): number => performance.now()
