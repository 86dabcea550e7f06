import { EventEmitter, once } from 'node:events'
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import { connect, createServer as createTcpServer, type AddressInfo, type Socket } from 'node:net'
import { randomUUID } from 'node:crypto'
import { Agent, ConsoleLogger, InjectionSymbols, Kms, LogLevel, DependencyManager, type AgentContext } from '@credo-ts/core'
import {
  DidCommHttpOutboundTransport,
  DidCommMediatorPickupStrategy,
  DidCommMessageForwardingStrategy,
  DidCommMessageReceiver,
  DidCommModule,
  DidCommTransportService,
  DidCommWsOutboundTransport,
} from '@credo-ts/didcomm'
import WebSocket, { WebSocketServer } from 'ws'
import { createMessagePickupQueue } from '../../packages/client/src/credo.js'
import { createKeys } from './credo-keys.js'
import { startProxy } from './proxy.js'
import { createStorage } from './credo-storage.js'

/*
 * Real Credo agents: a sender, a wallet behind a mediator, and instances of that mediator behind a balancer. From Credo is all
 * that concerns DIDComm; the test's own are keys and records (credo-keys.ts, credo-storage.ts) and the inbound transport, which
 * Credo has in a package with native dependencies.
 */

class NoFiles {
  dataPath = '/nowhere'
  cachePath = '/nowhere'
  tempPath = '/nowhere'
  exists = async () => false
  createDirectory = async () => {}
  copyFile = async () => {}
  write = async () => {}
  read = async () => ''
  delete = async () => {}
  downloadToFile = async () => {}
}

const dependencies = { FileSystem: NoFiles, EventEmitterClass: EventEmitter, fetch, WebSocketClass: WebSocket } as any

interface Identity {
  keys: any
  storage: any
}

export const newIdentity = (): Identity => ({ keys: createKeys(), storage: createStorage() })

function createAgent({ keys, storage }: Identity, didcomm: any) {
  const manager = new DependencyManager()
  manager.registerInstance(InjectionSymbols.StorageService, storage)
  return new Agent(
    {
      config: {
        logger: new ConsoleLogger(process.env.CREDO_LOG ? LogLevel.debug : LogLevel.off),
        allowInsecureHttpUrls: true,
        autoUpdateStorageOnStartup: true,
      },
      dependencies,
      modules: { kms: new Kms.KeyManagementModule({ backends: [keys] }), didcomm: new DidCommModule(didcomm) },
    },
    manager,
  )
}

/**
 * HTTP until it is switched off: a wallet that has only its live socket talks to one instance of its mediator at a time. (Without
 * it from the beginning Credo closes the socket of the handshake's last message, on which the next answer would come.)
 */
class SwitchedHttp extends DidCommHttpOutboundTransport {
  isOff = false
  override async sendMessage(outbound: any) {
    if (this.isOff) throw new Error('this agent has no HTTP')
    return super.sendMessage(outbound)
  }
}

async function freePort(): Promise<number> {
  const server = createTcpServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  server.close()
  return port
}

/** HTTP for forwards and WebSocket for wallets, on one port; as @credo-ts/node does it. */
function createInbound(port = 0) {
  let server: Server
  let webSockets: WebSocketServer
  const sockets = new Set<Socket>()
  const inbound = {
    port,
    async start(agentContext: AgentContext) {
      const receiver = agentContext.dependencyManager.resolve(DidCommMessageReceiver)
      const sessions = agentContext.dependencyManager.resolve(DidCommTransportService)
      server = createServer((request, response) => void onRequest(request, response))
      server.on('connection', (socket) => {
        sockets.add(socket)
        socket.on('close', () => sockets.delete(socket))
      })
      webSockets = new WebSocketServer({ server })
      webSockets.on('connection', (socket) => {
        const session: any = {
          id: randomUUID(),
          type: 'WebSocket',
          send: async (_: AgentContext, envelope: object) => {
            if (socket.readyState !== WebSocket.OPEN) throw new Error('the socket is closed')
            socket.send(JSON.stringify(envelope))
          },
          close: async () => socket.close(),
        }
        socket.on('error', () => {})
        socket.on('close', () => sessions.removeSession(session))
        socket.on('message', (data: Buffer) => {
          receiver
            .receiveMessage(JSON.parse(data.toString()), { session })
            .catch((error: unknown) => agentContext.config.logger.error('not received', { error }))
        })
      })
      server.listen(inbound.port, '127.0.0.1')
      await once(server, 'listening')

      async function onRequest(request: IncomingMessage, response: ServerResponse) {
        let text = ''
        for await (const chunk of request) text += chunk.toString()
        const session: any = {
          id: randomUUID(),
          type: 'http',
          send: async (_: AgentContext, envelope: object) =>
            void response.setHeader('content-type', 'application/didcomm-envelope-enc').end(JSON.stringify(envelope)),
          // Credo's own answers here, before the message is in the queue; then the next one may overtake it.
          close: async () => {},
        }
        try {
          await receiver.receiveMessage(JSON.parse(text), { session })
          if (!response.writableEnded) response.end()
        } catch (error) {
          agentContext.config.logger.error('not received', { error })
          if (!response.writableEnded) response.writeHead(500).end()
        } finally {
          sessions.removeSession(session)
        }
      }
    },
    async stop() {
      inbound.cut()
    },
    /** As a process that is killed: nobody is told anything but by TCP. */
    cut() {
      for (const socket of sockets) socket.destroy()
      webSockets?.close()
      server?.close()
    },
    get address() {
      return (server.address() as AddressInfo).port
    },
  }
  return inbound
}

/** One address before several instances; a connection goes to the first that is up, or to the one that is preferred. */
export async function startBalancer(t: { teardown(end: () => unknown): void }) {
  const targets: number[] = []
  const open = new Set<Socket>()
  const server = createTcpServer((near) => {
    open.add(near)
    near.on('close', () => open.delete(near)).on('error', () => {})
    const attempt = (i: number) => {
      const port = targets[i]
      if (port === undefined) return near.destroy()
      const far = connect(port, '127.0.0.1')
      far.once('error', () => attempt(i + 1))
      far.once('connect', () => {
        far.removeAllListeners('error').on('error', () => near.destroy())
        near.pipe(far).pipe(near)
        near.on('close', () => far.destroy())
        far.on('close', () => near.destroy())
      })
    }
    attempt(0)
  }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(() => {
    server.close()
    for (const socket of open) socket.destroy()
  })
  return {
    port: (server.address() as AddressInfo).port,
    add: (port: number) => void targets.push(port),
    /** The next connections go there. */
    prefer: (port: number) => void targets.sort((a, b) => Number(b === port) - Number(a === port)),
    remove: (port: number) => void targets.splice(targets.indexOf(port), 1),
  }
}

export type Balancer = Awaited<ReturnType<typeof startBalancer>>

/** An instance of the mediator; its queue is the service at `urls`. */
export async function startMediator(
  t: { teardown(end: () => unknown): void },
  { identity, balancer, urls, options = {} }: { identity: Identity; balancer: Balancer; urls: string[]; options?: object },
) {
  const proxies = await Promise.all(urls.map((url) => startProxy({ port: Number(new URL(url).port) })))
  const queue = createMessagePickupQueue({ url: proxies.map(({ port }) => `ws://127.0.0.1:${port}/ws`), ...options })
  const inbound = createInbound()
  const agent = createAgent(identity, {
    endpoints: [`http://127.0.0.1:${balancer.port}`, `ws://127.0.0.1:${balancer.port}`],
    transports: { inbound: [inbound], outbound: [new DidCommHttpOutboundTransport(), new DidCommWsOutboundTransport()] },
    queueTransportRepository: queue,
    connections: { autoAcceptConnections: true },
    mediator: { autoAcceptMediationRequests: true, messageForwardingStrategy: DidCommMessageForwardingStrategy.QueueOnly },
    mediationRecipient: false,
    credentials: false,
    proofs: false,
  })
  await queue.connect(agent)
  await agent.initialize()
  balancer.add(inbound.address)
  let isUp = true
  const mediator = {
    agent,
    queue,
    port: inbound.address,
    /** Its sockets to wallets and to the service end at the same moment. */
    kill() {
      if (!isUp) return
      isUp = false
      balancer.remove(mediator.port)
      inbound.cut()
      for (const proxy of proxies) proxy.cut()
    },
  }
  t.teardown(async () => {
    if (isUp) await agent.shutdown()
    await queue.disconnect()
    mediator.kill()
    for (const proxy of proxies) proxy.close()
  })
  return mediator
}

export type Mediator = Awaited<ReturnType<typeof startMediator>>

async function startAgent(
  t: { teardown(end: () => unknown): void },
  mediationRecipient: object | false,
  http: DidCommHttpOutboundTransport,
  inbound?: ReturnType<typeof createInbound>,
) {
  const agent = createAgent(newIdentity(), {
    endpoints: inbound ? [`ws://127.0.0.1:${inbound.port}`] : [],
    transports: {
      inbound: inbound ? [inbound] : [],
      outbound: [http, new DidCommWsOutboundTransport()],
    },
    connections: { autoAcceptConnections: true },
    mediator: false,
    mediationRecipient,
    credentials: false,
    proofs: false,
  })
  await agent.initialize()
  t.teardown(() => agent.shutdown())
  return agent
}

/** An agent with an address of its own, who writes to wallets. */
export async function startSender(t: { teardown(end: () => unknown): void }): Promise<any> {
  return startAgent(t, false, new DidCommHttpOutboundTransport(), createInbound(await freePort()))
}

/** A wallet whose mail goes through the mediator. Its strategy is begun by the test. */
export async function startWallet(t: { teardown(end: () => unknown): void }, mediator: Mediator) {
  const http = new SwitchedHttp()
  const wallet: any = await startAgent(
    t,
    {
      mediatorPickupStrategy: DidCommMediatorPickupStrategy.None,
      baseMediatorReconnectionIntervalMs: 100,
      maximumMediatorReconnectionIntervalMs: 1_000,
    },
    http,
  )
  const invitation = await (mediator.agent as any).didcomm.oob.createInvitation({ autoAcceptConnection: true })
  const connection = await join(wallet, invitation.outOfBandInvitation)
  await wallet.didcomm.mediationRecipient.provision(connection)
  http.isOff = true
  return wallet
}

/** Connected with each other. @returns the connection's id at the sender */
export async function befriend(sender: any, wallet: any): Promise<string> {
  const { outOfBandInvitation } = await wallet.didcomm.oob.createInvitation({ autoAcceptConnection: true })
  return (await join(sender, outOfBandInvitation)).id
}

async function join(agent: any, outOfBandInvitation: any): Promise<any> {
  const { connectionRecord } = await agent.didcomm.oob.receiveInvitation(outOfBandInvitation, { label: 'test' })
  return agent.didcomm.connections.returnWhenIsConnected(connectionRecord.id, { timeoutMs: 20_000 })
}

/** What the wallet got, in order. `until` waits for a number of them. */
export function listen(wallet: any) {
  const contents: string[] = []
  const watchers = new Set<() => void>()
  wallet.events.on('DidCommBasicMessageStateChanged', ({ payload: { message, basicMessageRecord } }: any) => {
    if (basicMessageRecord.role !== 'receiver') return
    contents.push(message.content)
    for (const watch of [...watchers]) watch()
  })
  return {
    contents,
    until: (test: (contents: string[]) => boolean, withinMs = 30_000) =>
      new Promise<void>((resolve, reject) => {
        const timer = setTimeout(
          () => reject(new Error(`${contents.length} came in ${withinMs} ms, the last ${contents.at(-1)}`)),
          withinMs,
        )
        const watch = () => {
          if (!test(contents)) return
          clearTimeout(timer)
          watchers.delete(watch)
          resolve()
        }
        watchers.add(watch)
        watch()
      }),
  }
}
