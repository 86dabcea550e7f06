import { once } from 'node:events'
import { connect, createServer, type AddressInfo, type Socket } from 'node:net'

export interface Proxy {
  port: number
  /** Nothing passes any more and nothing is closed: a cable that was pulled. New connections are accepted and hang. */
  blackHole(): void
  /** Cuts all connections, and refuses new ones until `heal`. */
  cut(): void
  /** Back to passing everything on; connections of the black hole are cut, as a peer would find them after a while. */
  heal(): void
  close(): void
}

/** A TCP proxy between any two parts, to do to them what networks do. */
export async function startProxy(target: { host?: string; port: number }): Promise<Proxy> {
  let mode: 'pass' | 'black hole' | 'cut' = 'pass'
  const pairs = new Set<[Socket, Socket]>()
  const swallowed = new Set<Socket>()

  const server = createServer((near) => {
    near.on('error', () => {})
    if (mode === 'cut') return near.destroy()
    if (mode === 'black hole') return void swallowed.add(near)
    const far = connect(target.port, target.host ?? '127.0.0.1')
    far.on('error', () => near.destroy())
    const pair: [Socket, Socket] = [near, far]
    pairs.add(pair)
    near.on('data', (data) => mode === 'pass' && far.write(data)).on('close', () => far.destroy())
    far
      .on('data', (data) => mode === 'pass' && near.write(data))
      .on('close', () => {
        pairs.delete(pair)
        if (mode === 'pass') near.destroy()
      })
  }).listen(0, '127.0.0.1')
  await once(server, 'listening')

  const cutAll = () => {
    for (const pair of pairs) for (const socket of pair) socket.destroy()
    for (const socket of swallowed) socket.destroy()
    swallowed.clear()
  }
  return {
    port: (server.address() as AddressInfo).port,
    blackHole: () => (mode = 'black hole'),
    cut() {
      mode = 'cut'
      cutAll()
    },
    heal() {
      cutAll()
      mode = 'pass'
    },
    close() {
      server.close()
      cutAll()
    },
  }
}
