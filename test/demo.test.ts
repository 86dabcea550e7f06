import { spawn } from 'node:child_process'
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import t from 'tap'

const root = fileURLToPath(new URL('..', import.meta.url))
const skip = (process.env.SKIP_TESTS ?? '').split(',').includes('redis') && 'left out by SKIP_TESTS=redis'

t.setTimeout(240_000) // three demos, some 20 s each, and three times that where all cores are busy

t.test('the demo of two instances holds, says so, and leaves nothing behind', { skip }, async (t) => {
  const { code, output } = await playDemo()
  t.equal(code, 0, output)
  t.match(output, /\nNothing was lost\. Everything is stopped and removed\.\n$/)
  t.equal(pidsIn(output).length, 4, 'two instances, and Redis twice')
  t.same(leftOvers(output), [])
})

t.test('Ctrl-C while the instances boot leaves nothing behind', { skip }, async (t) => {
  const { code, output } = await playDemo('Redis runs', 'SIGINT')
  t.equal(code, 1, output)
  t.match(output, /\nThe demo did not come to its end: ended by SIGINT\nEverything is stopped and removed\.\n$/)
  t.same(leftOvers(output), [])
})

t.test('a demo that is killed leaves nothing behind', { skip }, async (t) => {
  const { code, output } = await playDemo('MOVING', 'SIGKILL')
  t.equal(code, 'SIGKILL', output)
  for (const deadline = Date.now() + 10_000; leftOvers(output).length > 0 && Date.now() < deadline;) {
    await new Promise((resolve) => setTimeout(resolve, 50))
  }
  t.same(leftOvers(output), [])
})

/** Once `line` is said, sends it the signal; SIGINT to all of its group, as a terminal does. */
function playDemo(line?: string, signal?: NodeJS.Signals): Promise<{ code: number | NodeJS.Signals | null; output: string }> {
  return new Promise((resolve) => {
    const child = spawn(process.execPath, ['--import', 'tsx', 'examples/cluster.ts'], {
      cwd: root,
      env: { ...process.env, NODE_OPTIONS: '' }, // without tap's hooks
      detached: true, // a group of its own
      stdio: ['ignore', 'pipe', 'pipe'],
    })
    let output = ''
    let isSent = line === undefined
    for (const stream of [child.stdout, child.stderr]) {
      stream.setEncoding('utf8').on('data', (text: string) => {
        output += text
        if (isSent || !output.includes(line!)) return
        isSent = true
        process.kill(signal === 'SIGINT' ? -child.pid! : child.pid!, signal)
      })
    }
    child.on('close', (code, ended) => resolve({ code: ended ?? code, output }))
  })
}

function pidsIn(output: string): number[] {
  return [...output.matchAll(/\(pid (\d+)\)/g)].map(([, pid]) => Number(pid))
}

/** The folder of the demo, its processes by the ids that it told, and on Linux any process that was given a path in the folder. */
function leftOvers(output: string): string[] {
  const folder = /Postgres runs in (\S+)/.exec(output)![1]!
  const others = existsSync('/proc') ? readdirSync('/proc').filter((pid) => mentions(pid, folder)) : []
  const pids = new Set([...pidsIn(output).filter(isAlive).map(String), ...others])
  return existsSync(folder) ? [folder, ...pids] : [...pids]
}

function isAlive(pid: number): boolean {
  try {
    return process.kill(pid, 0)
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM'
  }
}

function mentions(pid: string, folder: string): boolean {
  try {
    const given = ['cmdline', 'environ'].map((file) => readFileSync(`/proc/${pid}/${file}`, 'utf8')).join()
    return given.includes(folder) || given.includes(encodeURIComponent(folder)) // DATABASE_URL
  } catch {
    return false // no process, or one that has just ended, or not ours
  }
}
