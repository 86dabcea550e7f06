import { spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { createInterface } from 'node:readline'
import type { Readable } from 'node:stream'

export interface RunningServer {
  child: ChildProcess
  pid: number
  /** http://127.0.0.1:port */
  url: string
  ws: string
  log: { msg: string; level: number; [fact: string]: unknown }[]
  /** Sends the signal and waits for the end. @returns the exit code, or the signal that ended it */
  end(signal: NodeJS.Signals): Promise<number | NodeJS.Signals>
}

export interface StartOptions {
  uid?: number
  gid?: number
  /** Arguments of node; absent: the sources of the service. */
  args?: string[]
  /** Modules that the sources are run with. */
  imports?: string[]
  /** With a channel for messages. */
  ipc?: boolean
}

const sources = (imports: string[]) => [...['tsx', ...imports].flatMap((module) => ['--import', module]), 'server.ts']

/** The service as a process of its own, as `npm start` runs it. Resolves once it is ready; rejects with what it said when it ends before. */
export async function startServer(
  settings: Record<string, string | undefined>,
  { imports = [], args = sources(imports), ipc = false, ...identity }: StartOptions = {},
): Promise<RunningServer> {
  // tap hooks itself into every node below a test, by NODE_OPTIONS; this one is to run as it does outside.
  const child = spawn('sh', ['-c', 'unset NODE_OPTIONS; exec "$0" "$@"', process.execPath, ...args], {
    stdio: ['ignore', 'pipe', 'pipe', ...(ipc ? ['ipc' as const] : [])],
    env: { PATH: process.env.PATH, PORT: '0', ...settings },
    ...identity,
  }) as ChildProcess & { stdout: Readable; stderr: Readable }
  const log: RunningServer['log'] = []
  let said = ''
  child.stderr.setEncoding('utf8').on('data', (text: string) => (said += text))
  const ready = new Promise<string>((resolve, reject) => {
    createInterface({ input: child.stdout }).on('line', (line) => {
      const fact = JSON.parse(line) as RunningServer['log'][number]
      log.push(fact)
      if (fact.msg === 'ready') resolve(String(fact.api).replace('/v1', ''))
    })
    child.once('close', (code) => reject(new Error(`the server ended with ${code}: ${said}`)))
  })
  const url = await ready
  return {
    child,
    pid: child.pid!,
    url,
    ws: `${url.replace('http', 'ws')}/ws`,
    log,
    async end(signal) {
      const hasEnded = () => child.exitCode !== null || child.signalCode !== null
      if (!hasEnded()) {
        const closed = once(child, 'close')
        child.kill(signal)
        await closed
      }
      if (child.exitCode) console.error(`the server ended with ${child.exitCode}: ${said}${JSON.stringify(log.slice(-5))}`)
      return child.signalCode ?? child.exitCode ?? -1
    },
  }
}
