import { spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import {
  accessSync,
  chownSync,
  closeSync,
  constants,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  writeSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import pg from 'pg'
import type { Log } from '../../src/ports.js'
import { findNative, NOBODY, prepareHome, prepareNative } from './embedded-folders.js'

/**
 * Keeps a real Postgres, a child process, for as long as this process lives: the store when no DATABASE_URL is given.
 *
 *   locked     this process holds `<dataDir>/lock`; a second one is refused with the pid of the first
 *   made       `<dataDir>/postgres` exists: initdb worked beside it and the folder was renamed, so it is whole or absent
 *   running    Postgres answers on a Unix socket (no TCP). Should it die, it is started again
 *   stopped    by stop(), or because this process died: then the shell that waits on our pipe stops it, even after kill -9
 *
 * Postgres refuses to run as root; then it runs as `nobody`, and what that user cannot reach (below a 0700 home, or a folder
 * of mktemp) is kept elsewhere (embedded-folders.ts), with a link to it in the data folder.
 */

// The kernel's limit for the path of a Unix socket is 107 bytes.
const MAX_SOCKET_FOLDER = 107 - '/.s.PGSQL.5432'.length
const START_TIMEOUT_MS = 60_000 // crash recovery replays at most a checkpoint's worth of WAL
const USER = 'mpr'

// Its stdin is a pipe from us that ends with us. `wait` in the foreground makes it end with Postgres, too.
const KEEPER = `exec 3<&0
"$@" 3<&- & postgres=$!
(cat <&3 >/dev/null; kill -INT $postgres) 2>/dev/null & watch=$!
exec 3<&-
wait $postgres; code=$?
kill $watch 2>/dev/null
exit $code`

export interface EmbeddedPostgres {
  connection: { host: string; port: number; user: string; database: string }
  stop(): Promise<void>
}

/** @throws Error with a sentence for the operator when the folder is in use or Postgres cannot run here */
export async function startEmbeddedPostgres(dataDir: string, log: Log): Promise<EmbeddedPostgres> {
  const installed = await findNative()
  const folder = resolve(dataDir)
  try {
    mkdirSync(folder, { recursive: true })
    accessSync(folder, constants.W_OK)
  } catch (error) {
    throw new Error(
      `The data folder ${folder} cannot be written (${(error as Error).message}). Set DATA_DIR to another folder, or DATABASE_URL to a Postgres.`,
      { cause: error },
    )
  }
  const unlock = lock(folder)
  try {
    const identity = process.getuid?.() === 0 ? { uid: NOBODY, gid: NOBODY } : undefined
    const native = prepareNative(installed, folder, identity !== undefined)
    const home = prepareHome(folder, identity !== undefined, log)
    const data = join(home, 'postgres')
    if (!existsSync(data)) await initialize(native, home, identity)
    await stopStray(data)
    return await run({ native, data, identity, unlock, log })
  } catch (error) {
    unlock()
    throw error
  }
}

async function run({
  native,
  data,
  identity,
  unlock,
  log,
}: {
  native: string
  data: string
  identity: Identity
  unlock: () => void
  log: Log
}): Promise<EmbeddedPostgres> {
  const sockets = data.length <= MAX_SOCKET_FOLDER ? data : ownedTemporary(identity)
  const connection = { host: sockets, port: 5432, user: USER, database: 'postgres' }
  const said: string[] = []
  let stopping = false

  const launch = (): ChildProcess => {
    const settings = [
      `unix_socket_directories=${sockets}`,
      'listen_addresses=',
      'port=5432',
      'max_connections=200',
      'log_error_verbosity=terse',
      'log_min_error_statement=panic',
      'timezone=UTC',
    ]
    const child = spawn(
      'sh',
      ['-c', KEEPER, 'mpr-postgres-keeper', join(native, 'bin/postgres'), '-D', data, ...settings.flatMap((setting) => ['-c', setting])],
      {
        ...identity,
        cwd: '/',
        detached: true, // Ctrl-C in a terminal is for us: we stop Postgres last
        stdio: ['pipe', 'ignore', 'pipe'],
        env: { PATH: process.env.PATH, LANG: 'C' },
      },
    )
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      said.push(...text.trim().split('\n'))
      said.splice(0, said.length - 20)
    })
    child.stdin.on('error', () => {})
    return child
  }

  let child = launch()
  const restartWhenDead = (code: number | null) => {
    if (stopping) return
    log.error({ code, postgres: said.slice(-3) }, 'embedded postgres died, starting it again')
    setTimeout(() => {
      if (stopping) return
      child = launch()
      child.on('exit', restartWhenDead)
    }, 500)
  }

  let died = false
  child.once('exit', () => (died = true))
  const deadline = performance.now() + START_TIMEOUT_MS
  while (!(await answers(connection))) {
    if (died || performance.now() > deadline) {
      child.stdin!.end()
      throw new Error(`The embedded Postgres in ${data} did not start. It said:\n${said.join('\n')}`)
    }
    await sleep(20)
  }
  child.on('exit', restartWhenDead)

  return {
    connection,
    async stop() {
      stopping = true
      if (child.exitCode === null && child.signalCode === null) {
        const exit = once(child, 'exit')
        child.stdin!.end()
        await exit
      }
      if (sockets !== data) rmSync(sockets, { recursive: true, force: true })
      unlock()
    },
  }
}

type Identity = { uid: number; gid: number } | undefined

async function answers(connection: EmbeddedPostgres['connection']): Promise<boolean> {
  const client = new pg.Client({ ...connection, connectionTimeoutMillis: 2_000 })
  client.on('error', () => {})
  try {
    await client.connect()
    await client.query('SELECT 1')
    return true
  } catch {
    return false
  } finally {
    await client.end().catch(() => {})
  }
}

async function initialize(native: string, home: string, identity: Identity): Promise<void> {
  const fresh = join(home, 'postgres.new')
  rmSync(fresh, { recursive: true, force: true }) // of an initdb that was killed
  mkdirSync(fresh, { mode: 0o700 })
  if (identity) chownSync(fresh, identity.uid, identity.gid)
  // Whoever can enter the folder (0700) may connect; there is no other way in.
  const child = spawn(join(native, 'bin/initdb'), ['-D', fresh, '-U', USER, '--auth=trust', '--encoding=UTF8', '--locale=C'], {
    ...identity,
    cwd: '/',
    stdio: ['ignore', 'ignore', 'pipe'],
    env: { PATH: process.env.PATH, LANG: 'C' },
  })
  let said = ''
  child.stderr.setEncoding('utf8').on('data', (text: string) => (said += text))
  const [code] = (await once(child, 'close')) as [number | null]
  if (code !== 0) throw new Error(`initdb failed in ${fresh} (exit code ${code}). It said:\n${said}`)
  renameSync(fresh, join(home, 'postgres'))
}

function ownedTemporary(identity: Identity): string {
  const folder = mkdtempSync(join(tmpdir(), 'mpr-'))
  if (identity) chownSync(folder, identity.uid, identity.gid)
  return folder
}

/** A Postgres that still runs here belongs to a process that is gone: its keeper is about to stop it, or was killed with it. */
async function stopStray(data: string): Promise<void> {
  const file = join(data, 'postmaster.pid')
  const pid = existsSync(file) ? Number(readFileSync(file, 'utf8').split('\n')[0]) : 0
  if (!pid || !/postgres|keeper/.test(commandOf(pid))) return
  for (const deadline = performance.now() + START_TIMEOUT_MS; isAlive(pid) && existsSync(file); await sleep(50)) {
    if (performance.now() > deadline)
      throw new Error(`A Postgres (pid ${pid}) that nobody uses any more runs in ${data} and does not stop. Stop it with: kill -INT ${pid}`)
    process.kill(pid, 'SIGINT')
  }
}

/** Takes `<folder>/lock`. @returns release @throws when a live process has it */
function lock(folder: string): () => void {
  const file = join(folder, 'lock')
  for (;;) {
    try {
      const handle = openSync(file, 'wx')
      writeSync(handle, `${process.pid} ${startOf(process.pid)}\n`)
      closeSync(handle)
      return () => rmSync(file, { force: true })
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error
    }
    const [pid, start] = readFileSync(file, 'utf8').trim().split(' ')
    if (Number(pid) !== process.pid && isAlive(Number(pid)) && startOf(Number(pid)) === start) {
      throw new Error(
        `The data folder ${folder} is in use by process ${pid}. One process at a time can keep an embedded Postgres there: stop that one, set DATA_DIR to another folder, or give both the same DATABASE_URL.`,
      )
    }
    rmSync(file, { force: true })
  }
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0)
    return true
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM'
  }
}

/** A pid is given to another process some time: with this it is not taken for the old one. `-` where there is no /proc. */
function startOf(pid: number): string {
  try {
    return readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1]!.split(' ')[19]!
  } catch {
    return '-'
  }
}

function commandOf(pid: number): string {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, 'utf8')
  } catch {
    return isAlive(pid) ? 'postgres' : ''
  }
}
