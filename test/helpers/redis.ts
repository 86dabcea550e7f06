import { execFileSync, spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, renameSync, rmSync } from 'node:fs'
import { createServer, type AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { dirname, join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { Redis } from 'ioredis'
import { until } from './until.js'

const CACHE = resolve(dirname(fileURLToPath(import.meta.url)), '../../.cache/redis')
const DEBIAN_PACKAGES = 'redis-server redis-tools liblua5.1-0 libjemalloc2 liblzf1 libhiredis0.14 libatomic1 lua-bitop lua-cjson'.split(' ')

interface Binary {
  command: string
  environment: Record<string, string>
}

/**
 * A redis-server to run: REDIS_SERVER, one on PATH, or Debian's, unpacked (not installed) into .cache/.
 * @throws Error with what to do
 */
export function redisBinary(): Binary {
  for (const command of [process.env.REDIS_SERVER ?? '', 'redis-server', 'valkey-server']) {
    if (command && works({ command, environment: {} })) return { command, environment: {} }
  }
  const unpacked = {
    command: join(CACHE, 'usr/bin/redis-server'),
    environment: { LD_LIBRARY_PATH: [join(CACHE, 'usr/lib/x86_64-linux-gnu'), join(CACHE, 'usr/lib/aarch64-linux-gnu')].join(':') },
  }
  if (!existsSync(unpacked.command)) unpackDebian()
  if (works(unpacked)) return unpacked
  throw new Error(
    'The tests need a redis-server (7 or newer) and none could be had. Install one (apt-get install redis-server, brew install redis), or point REDIS_SERVER to its binary, or leave these tests out by name: SKIP_TESTS=redis npm test',
  )
}

function works({ command, environment }: Binary): boolean {
  try {
    const version = /v=(\d+)/.exec(
      execFileSync(command, ['--version'], { encoding: 'utf8', stdio: 'pipe', env: { ...process.env, ...environment } }),
    )
    return Number(version?.[1]) >= 7
  } catch {
    return false
  }
}

function unpackDebian(): void {
  const folder = mkdtempSync(join(tmpdir(), 'mpr-redis-'))
  const run = (command: string, ...args: string[]) => execFileSync(command, args, { cwd: folder, stdio: 'pipe' })
  try {
    try {
      run('apt-get', 'download', ...DEBIAN_PACKAGES)
    } catch {
      run('apt-get', 'update', '-qq') // a new machine has no lists yet
      run('apt-get', 'download', ...DEBIAN_PACKAGES)
    }
    mkdirSync(join(folder, 'root'))
    for (const file of readdirSync(folder).filter((name) => name.endsWith('.deb'))) run('dpkg-deb', '-x', file, 'root')
    mkdirSync(dirname(CACHE), { recursive: true })
    const copy = `${CACHE}.${process.pid}` // /tmp may be another file system
    cpSync(join(folder, 'root'), copy, { recursive: true, verbatimSymlinks: true })
    if (existsSync(CACHE)) rmSync(copy, { recursive: true })
    else renameSync(copy, CACHE)
  } catch {
    // said by redisBinary
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
}

export interface TestRedis {
  port: number
  url: string
  child: ChildProcess
  /** Ends it without a word, like a crash. */
  kill(signal?: NodeJS.Signals): Promise<void>
}

/** One Redis on a port of its own, empty. */
export async function startRedis(
  options: { port?: number; password?: string; args?: (port: number) => string[] } = {},
): Promise<TestRedis> {
  const { command, environment } = redisBinary()
  const port = options.port ?? (await freePort())
  const folder = mkdtempSync(join(tmpdir(), 'mpr-redis-'))
  const child = spawn(
    command,
    ['--port', String(port), '--bind', '127.0.0.1', '--save', '', '--appendonly', 'no', '--dir', folder, ...(options.args?.(port) ?? [])],
    {
      stdio: 'ignore',
      env: { ...process.env, ...environment },
    },
  )
  child.once('exit', () => rmSync(folder, { recursive: true, force: true }))
  await untilAnswers(port, child, options.password)
  return {
    port,
    url: `redis://127.0.0.1:${port}`,
    child,
    async kill(signal = 'SIGKILL') {
      if (child.exitCode !== null || child.signalCode !== null) return
      const exit = once(child, 'exit')
      child.kill(signal)
      await exit
    },
  }
}

export interface TestCluster {
  nodes: TestRedis[]
  /** host:port,… as REDIS_NODES wants it. */
  list: string
  stop(): Promise<void>
}

/**
 * A Redis Cluster of three masters; with `replicas`, each has one that takes over when its master dies; with `announceShift`
 * its nodes name themselves by ports at which they are not, as behind a NAT.
 */
export async function startCluster({ replicas = false, announceShift = 0 } = {}): Promise<TestCluster> {
  const args = (port: number) => [
    ...['--cluster-enabled', 'yes', '--cluster-node-timeout', '1000', '--cluster-require-full-coverage', 'no'],
    ...['--cluster-announce-port', String(port + announceShift), '--cluster-announce-bus-port', String(port + 10_000)],
  ]
  const nodes = await Promise.all(Array.from({ length: replicas ? 6 : 3 }, () => startRedis({ args })))
  const clients = nodes.map(({ port }) => new Redis(port))
  const ids = await Promise.all(clients.map((client) => client.cluster('MYID')))
  const share = Math.ceil(16_384 / 3)
  for (const i of [0, 1, 2]) await clients[i]!.call('CLUSTER', 'ADDSLOTSRANGE', i * share, Math.min(16_383, (i + 1) * share - 1))
  for (const { port } of nodes.slice(1)) await clients[0]!.cluster('MEET', '127.0.0.1', port)
  const formed = (test: () => Promise<boolean>) => until(test, 'the Redis Cluster', 20_000)
  const knowsAll = async (client: Redis) => ((await client.cluster('NODES')) as string).trim().split('\n').length === nodes.length
  await formed(async () => (await Promise.all(clients.map(knowsAll))).every(Boolean))
  if (replicas) {
    for (const i of [0, 1, 2])
      await formed(() =>
        clients[i + 3]!.cluster('REPLICATE', ids[i]!).then(
          () => true,
          () => false,
        ),
      )
  }
  await formed(async () =>
    (await Promise.all(clients.map((client) => client.cluster('INFO')))).every((info) => info.includes('cluster_state:ok')),
  )
  if (replicas) await formed(async () => ((await clients[0]!.cluster('NODES')) as string).match(/slave .* connected/g)?.length === 3)
  for (const client of clients) client.disconnect()
  return {
    nodes,
    list: nodes.map(({ port }) => `127.0.0.1:${port}`).join(','),
    stop: async () => void (await Promise.all(nodes.map((node) => node.kill()))),
  }
}

async function untilAnswers(port: number, child: ChildProcess, password?: string): Promise<void> {
  const client = new Redis(port, { password, retryStrategy: () => 20, maxRetriesPerRequest: null })
  client.on('error', () => {})
  try {
    await Promise.race([
      client.ping(),
      once(child, 'exit').then(() => {
        throw new Error(`redis-server ended at once; is port ${port} taken?`)
      }),
    ])
  } finally {
    client.disconnect()
  }
}

async function freePort(): Promise<number> {
  // Below 55,536, because a Cluster node also listens on its port + 10,000.
  for (;;) {
    const server = createServer().listen(0, '127.0.0.1')
    await once(server, 'listening')
    const { port } = server.address() as AddressInfo
    server.close()
    await once(server, 'close')
    if (port < 55_000) return port
  }
}
