import { execFileSync } from 'node:child_process'
import { chmodSync, chownSync, existsSync, lstatSync, mkdtempSync, realpathSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import t from 'tap'
import { startServer, type RunningServer } from './helpers/process.js'
import { connect, message } from './helpers/service.js'

const isRoot = process.getuid?.() === 0
const DAEMON = 1 // a user that every Linux has

function temporaryFolder(t: { teardown(end: () => void): void }): string {
  const folder = mkdtempSync(join(tmpdir(), 'mpr-embedded-')) // 0700, like a home
  t.teardown(() => {
    const linked = join(folder, 'data/postgres')
    if (existsSync(linked)) rmSync(dirname(realpathSync(linked)), { recursive: true, force: true })
    rmSync(folder, { recursive: true, force: true })
  })
  return folder
}

/** Postmasters whose data folder is this one. */
function postmasters(folder: string): string[] {
  const place = existsSync(join(folder, 'postgres')) ? realpathSync(join(folder, 'postgres')) : folder
  return execFileSync('ps', ['-eo', 'pid,args'], { encoding: 'utf8' })
    .split('\n')
    .filter((line) => /^ *\d+ \S*bin\/postgres -D/.test(line) && line.includes(place))
}

async function untilGone(folder: string): Promise<void> {
  for (const deadline = Date.now() + 10_000; postmasters(folder).length > 0; await new Promise((resolve) => setTimeout(resolve, 20))) {
    if (Date.now() > deadline) throw new Error(`still running: ${postmasters(folder).join('\n')}`)
  }
}

/** Adds as fast as the server answers, until it dies. @returns the ids that were acknowledged */
async function addUntilDead(server: RunningServer, connectionId: string, killAfter: number): Promise<string[]> {
  const client = await connect(server.ws)
  const dead = new Promise<void>((resolve) => client.socket.on('close', () => resolve()).on('error', () => resolve()))
  const acknowledged: string[] = []
  client.socket.on('message', (data: Buffer) => {
    const { result } = JSON.parse(data.toString()) as { result?: string }
    if (result) acknowledged.push(result)
    if (acknowledged.length === killAfter) server.child.kill('SIGKILL')
  })
  for (let n = 0; client.socket.readyState === client.socket.OPEN; n++) {
    client.socket.send(JSON.stringify({ jsonrpc: '2.0', id: n, method: 'addMessage', params: message(connectionId, n) }))
    if (n % 50 === 49) await new Promise((resolve) => setTimeout(resolve, 10))
  }
  await dead
  return acknowledged
}

async function takeAll(server: RunningServer, connectionId: string): Promise<string[]> {
  const client = await connect(server.ws)
  const ids: string[] = []
  for (;;) {
    const batch = (await client.call('takeFromQueue', { connectionId, deleteMessages: true })) as { id: string }[]
    if (batch.length === 0) break
    ids.push(...batch.map(({ id }) => id))
  }
  await client.close()
  return ids
}

t.test('kill -9 under load: every acknowledged message is there afterwards, and no Postgres is left behind', async (t) => {
  const DATA_DIR = join(temporaryFolder(t), 'data')
  for (const round of [1, 2, 3]) {
    const server = await startServer({ DATA_DIR, LOG_LEVEL: 'info', QUOTA_MESSAGES: '0' })
    const acknowledged = await addUntilDead(server, `round ${round}`, 500 * round)
    t.ok(acknowledged.length >= 500 * round)
    const again = await startServer({ DATA_DIR, LOG_LEVEL: 'info' }) // at once: it finds the former Postgres still stopping
    const stored = new Set(await takeAll(again, `round ${round}`))
    t.same(
      acknowledged.filter((id) => !stored.has(id)),
      [],
    )
    t.equal(postmasters(DATA_DIR).length, 1)
    t.equal(await again.end(round === 3 ? 'SIGTERM' : 'SIGKILL'), round === 3 ? 0 : 'SIGKILL')
    await untilGone(DATA_DIR)
  }
})

t.test('a Postgres that outlived its keeper is stopped, and the data is used again', async (t) => {
  const DATA_DIR = join(temporaryFolder(t), 'data')
  const server = await startServer({ DATA_DIR })
  const [line] = postmasters(DATA_DIR)
  const postmaster = Number(line!.trim().split(' ')[0])
  const keeper = Number(execFileSync('ps', ['-o', 'ppid=', '-p', String(postmaster)], { encoding: 'utf8' }))
  const watchers = execFileSync('ps', ['-o', 'pid=', '--ppid', String(keeper)], { encoding: 'utf8' })
  for (const pid of [keeper, ...watchers.trim().split(/\s+/).map(Number)]) if (pid !== postmaster) process.kill(pid, 'SIGKILL')
  await server.end('SIGKILL')
  t.equal(postmasters(DATA_DIR).length, 1, 'a stray server')
  const again = await startServer({ DATA_DIR })
  t.equal(postmasters(DATA_DIR).length, 1)
  t.notMatch(postmasters(DATA_DIR)[0], new RegExp(`^\\s*${postmaster} `))
  t.equal(await again.end('SIGTERM'), 0)
  await untilGone(DATA_DIR)
})

t.test('kill -9 of Postgres: it is started again, and nothing acknowledged is lost', async (t) => {
  const DATA_DIR = join(temporaryFolder(t), 'data')
  const server = await startServer({ DATA_DIR })
  t.teardown(() => server.end('SIGKILL'))
  const client = await connect(server.ws, t)
  const id = await client.call('addMessage', message('c'))
  process.kill(Number(postmasters(DATA_DIR)[0]!.trim().split(' ')[0]), 'SIGKILL')
  while (!server.log.some(({ msg }) => msg.includes('embedded postgres died'))) await new Promise((resolve) => setTimeout(resolve, 10))
  for (;;) {
    const { result, error } = await client.ask('takeFromQueue', { connectionId: 'c' })
    if (error) {
      t.match(error.data, { retryable: true }, 'a typed error, never an empty answer')
      await new Promise((resolve) => setTimeout(resolve, 50))
      continue
    }
    t.same(
      result.map((m: { id: string }) => m.id),
      [id],
    )
    break
  }
  t.equal(await server.end('SIGTERM'), 0)
})

t.test('a second process on the same folder is refused, in a sentence that says by whom', async (t) => {
  const DATA_DIR = join(temporaryFolder(t), 'data')
  const server = await startServer({ DATA_DIR })
  await t.rejects(startServer({ DATA_DIR }), new RegExp(`in use by process ${server.pid}.*set DATA_DIR to another folder`, 's'))
  const client = await connect(server.ws)
  t.type(await client.call('addMessage', message('c')), 'string', 'the first is not disturbed')
  await client.close()
  t.equal(await server.end('SIGTERM'), 0)
})

t.test(
  'as root, below a folder that nobody else may enter, the data is kept elsewhere with a link to it',
  { skip: isRoot ? false : 'needs root' },
  async (t) => {
    const DATA_DIR = join(temporaryFolder(t), 'data')
    const server = await startServer({ DATA_DIR })
    t.ok(lstatSync(join(DATA_DIR, 'postgres')).isSymbolicLink())
    const place = dirname(realpathSync(join(DATA_DIR, 'postgres')))
    t.ok(server.log.some(({ msg, home }) => msg.includes('data is kept elsewhere') && home === place))
    t.equal(await server.end('SIGTERM'), 0)
  },
)

t.test('as a user, the data is in the folder', { skip: isRoot ? false : 'needs root to become another user' }, async (t) => {
  const folder = temporaryFolder(t)
  chmodSync(folder, 0o755)
  const home = join(folder, 'home')
  execFileSync('mkdir', [home])
  chownSync(home, DAEMON, DAEMON)
  const server = await startServer({ DATA_DIR: join(home, 'data'), HOME: home, TMPDIR: home }, { uid: DAEMON, gid: DAEMON })
  t.notOk(lstatSync(join(home, 'data/postgres')).isSymbolicLink())
  const client = await connect(server.ws)
  t.type(await client.call('addMessage', message('c')), 'string')
  await client.close()
  t.equal(await server.end('SIGTERM'), 0)
})
