import { spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { chmodSync, mkdtempSync, readdirSync, readFileSync, readlinkSync, realpathSync, rmSync, statSync } from 'node:fs'
import { createServer, type AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { startEmbeddedPostgres } from '../../plugins/storage/embedded.js'
import { createDatabase, onDatabase, silent } from './postgres.js'

export interface FragilePostgres {
  port: number
  /** Of a new and empty database. */
  database: string
  user: string
  url: string
  /** All its processes at once, without a word, like a machine that loses its power (but for what the kernel still writes). */
  kill(): Promise<void>
  /** @returns once it accepts connections, after its recovery */
  start(): Promise<void>
}

/** A Postgres with fsync of its own that may be killed: that of the other tests must live. Over TCP, so that a proxy fits between. */
export async function startFragilePostgres(t: { teardown(end: () => unknown): void }): Promise<FragilePostgres> {
  const folder = mkdtempSync(join(tmpdir(), 'mpr-fragile-'))
  chmodSync(folder, 0o711) // as root Postgres is another user
  const embedded = await startEmbeddedPostgres(folder, silent) // makes the cluster, and knows where the binary is
  const { user } = embedded.connection
  const data = realpathSync(join(folder, 'postgres'))
  const binary = readlinkSync(`/proc/${readFileSync(join(data, 'postmaster.pid'), 'utf8').split('\n')[0]}/exe`)
  await embedded.stop()

  const port = await freePort()
  let child: ChildProcess | undefined
  const server = `postgres://${user}@127.0.0.1:${port}/postgres`
  const postgres = {
    ...{ port, user, database: '', url: '' },
    async kill() {
      if (!child || child.exitCode !== null || child.signalCode !== null) return
      const exit = once(child, 'exit')
      for (const pid of [child.pid!, ...childrenOf(child.pid!)]) {
        try {
          process.kill(pid, 'SIGKILL')
        } catch {
          // ended by itself since
        }
      }
      await exit
    },
    async start() {
      const settings = ['listen_addresses=127.0.0.1', `port=${port}`, `unix_socket_directories=${data}`, 'max_connections=100']
      const { uid, gid } = statSync(data)
      child = spawn(binary, ['-D', data, ...settings.flatMap((setting) => ['-c', setting])], {
        ...(process.getuid?.() === 0 && { uid, gid }),
        ...{ cwd: '/', stdio: 'ignore', env: { LANG: 'C' } },
      })
      while (!(await answers(server))) {
        if (child.exitCode !== null) throw new Error(`Postgres ended with ${child.exitCode} in ${data}`)
        await sleep(20)
      }
    },
  }
  t.teardown(async () => {
    await postgres.kill()
    rmSync(folder, { recursive: true, force: true })
  })
  await postgres.start()
  const { url } = await createDatabase(server)
  return Object.assign(postgres, { url, database: new URL(url).pathname.slice(1) })
}

function answers(url: string): Promise<boolean> {
  return onDatabase(url, 'SELECT 1').then(
    () => true,
    () => false,
  )
}

function childrenOf(parent: number): number[] {
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .map(Number)
    .filter((pid) => {
      try {
        return Number(readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1]!.split(' ')[1]) === parent
      } catch {
        return false // ended
      }
    })
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  server.close()
  await once(server, 'close')
  return port
}
