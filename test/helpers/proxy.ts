import { once } from 'node:events'
import { connect, createServer, type AddressInfo, type Socket } from 'node:net'

export interface Proxy {
  port: number
  /** Nothing passes any more and nothing is closed: a cable that was pulled. New connections are accepted and hang. */
  blackHole(): void
  /** What is asked arrives, what is answered is lost, and nothing is closed: half of a cable. */
  loseAnswers(): void
  /** Each piece arrives this much later, in order. */
  delay(ms: () => number): void
  /** Answers arrive at this rate; who sends them has to wait. */
  drip(bytesPerSecond: number): void
  /** Cuts all connections, and refuses new ones until `heal`. */
  cut(): void
  /** Back to passing everything on; connections of the black hole are cut, as a peer would find them after a while. */
  heal(): void
  close(): void
}

interface Target {
  host?: string
  port: number
  /** Sees, and may change, what is asked before it is passed on. Its length must stay. */
  onAsked?: (data: Buffer) => void
}

const DRIPS_PER_SECOND = 4

/** A TCP proxy between any two parts, to do to them what networks do. */
export async function startProxy({ host = '127.0.0.1', port, onAsked }: Target): Promise<Proxy> {
  let mode: 'pass' | 'black hole' | 'lose answers' | 'cut' = 'pass'
  let delayMs: (() => number) | undefined
  let rate = Infinity
  const pairs = new Set<[Socket, Socket]>()
  const swallowed = new Set<Socket>()

  const server = createServer((near) => {
    near.on('error', () => {})
    if (mode === 'cut') return near.destroy()
    if (mode === 'black hole') return void swallowed.add(near)
    const far = connect(port, host)
    far.on('error', () => near.destroy())
    const pair: [Socket, Socket] = [near, far]
    pairs.add(pair)
    const ask = inOrder((data) => far.write(data))
    const answer = inOrder((data) => near.write(data))
    near
      .on('data', (data) => {
        if (mode !== 'pass' && mode !== 'lose answers') return
        onAsked?.(data)
        ask(data)
      })
      .on('close', () => far.destroy())
    far
      .on('data', (data) => {
        if (mode !== 'pass') return
        if (rate === Infinity) answer(data)
        else dripOut(far, near, data)
      })
      .on('close', () => {
        pairs.delete(pair)
        if (mode === 'pass') near.destroy()
      })
  }).listen(0, '127.0.0.1')
  await once(server, 'listening')

  /** Later, when there is a delay, and never before what came earlier. */
  function inOrder(write: (data: Buffer) => void): (data: Buffer) => void {
    let freeAt = 0
    return (data) => {
      if (!delayMs && performance.now() >= freeAt) return write(data)
      freeAt = Math.max(freeAt, performance.now() + (delayMs?.() ?? 0))
      setTimeout(() => write(data), freeAt - performance.now())
    }
  }

  function dripOut(far: Socket, near: Socket, data: Buffer): void {
    far.pause()
    let at = 0
    const timer = setInterval(() => {
      const next = data.subarray(at, (at += rate === Infinity ? data.length : rate / DRIPS_PER_SECOND))
      near.write(next)
      if (at < data.length && !near.destroyed) return
      clearInterval(timer)
      far.resume()
    }, 1_000 / DRIPS_PER_SECOND)
  }

  const cutAll = () => {
    for (const pair of pairs) for (const socket of pair) socket.destroy()
    for (const socket of swallowed) socket.destroy()
    swallowed.clear()
  }
  return {
    port: (server.address() as AddressInfo).port,
    blackHole: () => (mode = 'black hole'),
    loseAnswers: () => (mode = 'lose answers'),
    delay: (ms) => (delayMs = ms),
    drip: (bytesPerSecond) => (rate = bytesPerSecond),
    cut() {
      mode = 'cut'
      cutAll()
    },
    heal() {
      if (mode !== 'pass') cutAll()
      mode = 'pass'
      delayMs = undefined
      rate = Infinity
    },
    close() {
      server.close()
      cutAll()
    },
  }
}
