import { spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { chmodSync, existsSync, mkdtempSync, realpathSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { startEmbeddedPostgres } from '../plugins/storage/embedded.js'
import { startServer, type RunningServer } from '../test/helpers/process.js'
import { redisBinary, startRedis, type TestRedis } from '../test/helpers/redis.js'

/**
 * Processes and files that are gone when this process is, however it ends.
 *
 *   running    all files are in one folder; a guard, a shell of its own, knows it and which processes there are
 *   stopping   by stop(): nothing new is started, what is still starting is waited for, then all is ended and removed
 *   stopped    the guard, whose input ends, finds nothing to do and ends as well
 *
 * When this process is killed the guard does it: tsx answers Ctrl-C with SIGKILL for a script that is busy for 60 ms.
 * Not covered is an instance that is still booting when only this process is killed; Ctrl-C in a terminal reaches both.
 */
export interface Throwaway {
  readonly folder: string
  /** @returns the URL of an embedded Postgres */
  postgres(): Promise<string>
  redis(port?: number): Promise<TestRedis>
  instance(settings: Record<string, string>): Promise<RunningServer>
  /** Ends it without a word, like a crash. */
  kill(victim: TestRedis | RunningServer): Promise<void>
  /** @throws Error naming what could not be stopped or removed */
  stop(): Promise<void>
}

// Each line that it reads is the list of what runs now. Postgres stops by itself, and is given 5 s for it.
const GUARD = `while read -r line; do running=$line; done
kill -9 $running
for i in 1 2 3 4 5 6 7 8 9 10; do [ -e "$1/postgres/postmaster.pid" ] && sleep 0.5; done
rm -rf "$1"`

const silent = { debug() {}, info() {}, warn() {}, error() {} }

/** @throws Error with what to do when there is no Redis to start */
export function createThrowaway(): Throwaway {
  requireRedis()
  const folder = mkdtempSync(join(realpathSync(tmpdir()), 'mpr-demo-'))
  chmodSync(folder, 0o711) // under root, Postgres runs as another user; its own folder in here is 0700
  process.env.TMPDIR = folder // for what else makes itself a temporary folder
  const guard = spawn('sh', ['-c', GUARD, 'mpr-demo-guard', folder], { detached: true, stdio: ['pipe', 'ignore', 'ignore'] })
  guard.stdin.on('error', () => {})

  const children = new Set<ChildProcess>()
  const starting = new Set<Promise<unknown>>()
  const ends: (() => Promise<unknown>)[] = []
  let stopping: Promise<void> | undefined

  return {
    folder,
    async postgres() {
      const { connection } = await keep(
        () => startEmbeddedPostgres(folder, silent),
        async (postgres) => {
          const data = realpathSync(join(folder, 'postgres'))
          await postgres.stop()
          rmSync(dirname(data), { recursive: true, force: true }) // elsewhere when its user could not enter our folder
        },
      )
      return `postgres://${connection.user}@${encodeURIComponent(connection.host)}:${connection.port}/${connection.database}`
    },
    redis: (port) =>
      keep(
        () => startRedis({ port }),
        (redis) => redis.kill(),
      ),
    instance: (settings) =>
      keep(
        () => startServer(settings),
        (server) => server.end('SIGKILL'),
      ),
    async kill({ child }) {
      const exit = once(child, 'exit')
      child.kill('SIGKILL')
      await exit
      tellGuard()
    },
    stop: () => (stopping ??= stopAll()),
  }

  async function keep<T extends object>(start: () => Promise<T>, end: (started: T) => Promise<unknown>): Promise<T> {
    if (stopping) throw new Error('nothing is started any more')
    const attempt = start()
    starting.add(attempt)
    try {
      const started = await attempt
      ends.unshift(() => end(started)) // what was started last ends first
      if ('child' in started) children.add(started.child as ChildProcess)
      tellGuard()
      return started
    } finally {
      starting.delete(attempt)
    }
  }

  function tellGuard(): void {
    guard.stdin.write(`${running().join(' ')}\n`)
  }

  function running(): number[] {
    return [...children].filter(({ exitCode, signalCode }) => exitCode === null && signalCode === null).map(({ pid }) => pid!)
  }

  async function stopAll(): Promise<void> {
    await Promise.allSettled(starting)
    const problems: string[] = []
    for (const end of ends) await end().catch((error: Error) => problems.push(error.message))
    rmSync(folder, { recursive: true, force: true })
    tellGuard()
    guard.stdin.end()
    if (guard.exitCode === null && guard.signalCode === null) await once(guard, 'exit')
    if (running().length > 0) problems.push(`still there: process ${running().join(', ')}`)
    if (existsSync(folder)) problems.push(`still there: ${folder}`)
    if (problems.length > 0) throw new Error(problems.join('; '))
  }
}

/** @throws Error (rejects) when this process is told to end. npm and tsx repeat what the terminal sent; once is enough. */
export function untilSignal(): Promise<never> {
  const signalled = new Promise<never>((_, reject) => {
    for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => reject(new Error(`ended by ${signal}`)))
  })
  signalled.catch(() => {}) // told to whoever waits
  return signalled
}

function requireRedis(): void {
  try {
    redisBinary()
  } catch (error) {
    throw new Error(
      'no Redis could be had, and it needs a redis-server (7 or newer). Install one (apt-get install redis-server, brew install redis), or point REDIS_SERVER to its binary.',
      { cause: error },
    )
  }
}
