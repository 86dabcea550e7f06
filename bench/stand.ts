import { execFileSync, fork, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { rmSync } from 'node:fs'
import pg from 'pg'
import { createDatabase, startTestPostgres, type TestPostgres } from '../test/helpers/postgres.js'
import { startServer, type RunningServer } from '../test/helpers/process.js'
import { startRedis, type TestRedis } from '../test/helpers/redis.js'
import type { Jobs, Order } from './load.js'
import { cpuOf, cpuOfFamily, forgetPeak, memoryOf, postmasterOf } from './measure.js'
import type { Probe } from './probe.js'

/** What a measurement stands on: Postgres with fsync, Redis, the service as it runs in production, and the generator. */

// Not dist/ itself: who builds it again meanwhile, a test or another run, must not disturb a service that is being started.
const BUILT = `dist/bench-${process.pid}`

export interface Generator {
  pid: number
  /** @throws Error when an answer was wrong */
  do<Name extends keyof Jobs>(name: Name, options: Parameters<Jobs[Name]>[0]): Promise<Awaited<ReturnType<Jobs[Name]>>>
  stop(): Promise<void>
}

export interface Instance extends RunningServer {
  probe<Name extends keyof Probe>(name: Name, file?: string): Promise<Probe[Name]>
}

/** CPU in µs of all that happened. */
export interface Cost {
  service: number
  postgres: number
  redis: number
  generator: number
  /** Of the service, bytes: the most of it while it happened. */
  peakBytes: number
  walBytes: number
}

export interface Stand {
  generator: Generator
  /** A new database, and services of it. */
  open(): Promise<Place>
  close(): Promise<void>
}

export interface Place {
  databaseUrl: string
  client: pg.Client
  start(options?: { settings?: Record<string, string | undefined>; probe?: boolean }): Promise<Instance>
  /** The ceiling: see floor.ts. */
  startFloor(): Promise<RunningServer>
  /** The least that a durable add costs: see bare.ts. The schema must be there. */
  startBare(): Promise<RunningServer>
  /** `redises` are those that it uses besides its own. */
  measured<Result>(
    services: readonly RunningServer[],
    work: () => Promise<Result>,
    redises?: readonly TestRedis[],
  ): Promise<{ result: Result; cost: Cost }>
  close(): Promise<void>
}

export function build(): void {
  execFileSync('npm', ['run', 'build', '--silent', '--', 'bench/*.ts', 'test/helpers/*.ts', `--outdir=${BUILT}`], { stdio: 'inherit' })
}

export async function openStand(): Promise<Stand> {
  const postgres = await startTestPostgres()
  const redis = await startRedis()
  const generator = await startGenerator()
  return {
    generator,
    open: () => openPlace(postgres, redis, generator),
    async close() {
      await generator.stop()
      await redis.kill()
      await postgres.stop()
      rmSync(BUILT, { recursive: true, force: true })
    },
  }
}

async function openPlace(server: TestPostgres, redis: TestRedis, generator: Generator): Promise<Place> {
  const database = await createDatabase(server.url)
  const client = new pg.Client(database.url)
  await client.connect()
  const { rows } = await client.query<{ fsync: string; commit: string }>(
    `SELECT current_setting('fsync') AS fsync, current_setting('synchronous_commit') AS commit`,
  )
  if (rows[0]!.fsync !== 'on' || rows[0]!.commit !== 'on')
    throw new Error(`This Postgres does not keep what it commits: ${JSON.stringify(rows)}`)
  const postmaster = await postmasterOf(client)
  const started: RunningServer[] = []
  const run = async (args: string[], settings: Record<string, string | undefined>, ipc = false) => {
    const service = await startServer(settings, { args: ['--enable-source-maps', ...args], ipc })
    started.push(service)
    return service
  }
  return {
    databaseUrl: database.url,
    client,
    async start({ settings = {}, probe = false } = {}) {
      const args = [...(probe ? ['--import', `./${BUILT}/bench/probe.js`] : []), `${BUILT}/server.js`]
      const service = await run(args, { DATABASE_URL: database.url, REDIS_URL: redis.url, LOG_LEVEL: 'info', ...settings }, probe)
      return { ...service, probe: (name, file) => request(service.child, { name, file }) }
    },
    startFloor: () => run([`${BUILT}/bench/floor.js`], {}),
    startBare: () => run([`${BUILT}/bench/bare.js`], { DATABASE_URL: database.url }),
    async measured(services, work, redises = []) {
      for (const { pid } of services) forgetPeak(pid)
      const redisPids = [redis, ...redises].map(({ child }) => child.pid!)
      const read = async () => {
        const { rows } = await client.query<{ at: string }>(`SELECT pg_current_wal_insert_lsn() - '0/0' AS at`)
        const pids = services.map(({ pid }) => pid)
        return [cpuOf(...pids), cpuOfFamily(postmaster), cpuOf(...redisPids), cpuOf(generator.pid), Number(rows[0]!.at)]
      }
      const before = await read()
      const result = await work()
      const [serviceUs, postgresUs, redisUs, generatorUs, walBytes] = (await read()).map((value, i) => value - before[i]!)
      const peakBytes = Math.max(...services.map(({ pid }) => memoryOf(pid, 'VmHWM')))
      return {
        result,
        cost: {
          service: serviceUs!,
          postgres: postgresUs!,
          redis: redisUs!,
          generator: generatorUs!,
          walBytes: walBytes!,
          peakBytes,
        },
      }
    },
    async close() {
      await Promise.all(started.map((service) => service.end('SIGTERM')))
      await client.end()
      await database.drop()
    },
  }
}

export async function startGenerator(module = `${BUILT}/bench/load.js`, execArgv: string[] = []): Promise<Generator> {
  const env = { ...process.env, NODE_OPTIONS: '' } // tap's hooks cost more than the load
  const child = fork(module, { env, execArgv })
  await once(child, 'message')
  return {
    pid: child.pid!,
    do: (name, options) => request(child, { name, options: options as never } satisfies Order),
    async stop() {
      if (child.exitCode !== null || child.signalCode !== null) return
      const exit = once(child, 'exit')
      child.disconnect()
      await exit
    },
  }
}

/** One at a time. */
export function request<Result>(child: ChildProcess, command: object): Promise<Result> {
  return new Promise((resolve, reject) => {
    const onMessage = ({ result, error }: { result: Result; error?: string }) => {
      child.off('exit', onExit)
      if (error === undefined) resolve(result)
      else reject(new Error(error))
    }
    const onExit = (code: number | null) => {
      child.off('message', onMessage)
      reject(new Error(`the process ended with ${code} at ${JSON.stringify(command).slice(0, 200)}`))
    }
    child.once('message', onMessage).once('exit', onExit)
    child.send(command)
  })
}
