/*
 * Question: what does a call cost the server (CPU), over 8 sockets with 32 calls in flight each, and does one socket with more in
 * flight than it may have stall?
 *
 *   npx tsx bench/calls.ts [folder of another checkout to compare with]
 *
 * The load runs on the same cores, so compare within a run. Rounds alternate between the checkouts.
 */
import { spawn } from 'node:child_process'
import { createInterface } from 'node:readline'
import { createDatabase, startTestPostgres } from '../test/helpers/postgres.js'
import { cpuOf, machine, median } from './measure.js'
import { inParallel, openSocket } from './socket.js'

const CALLS = 8_000
const ROUNDS = 3
const PAYLOAD = { ciphertext: 'x'.repeat(1_500) }

const folders = ['.', ...process.argv.slice(2)]
const postgres = await startTestPostgres()
console.log(machine())

async function start(folder: string) {
  const database = await createDatabase(postgres.url)
  const child = spawn(process.execPath, ['--import', 'tsx', 'server.ts'], {
    cwd: folder,
    stdio: ['ignore', 'pipe', 'inherit'],
    env: { PATH: process.env.PATH, PORT: '0', DATABASE_URL: database.url, QUOTA_MESSAGES: '0', QUOTA_BYTES: '0' },
  })
  for await (const line of createInterface({ input: child.stdout })) {
    const { msg, rpc } = JSON.parse(line) as { msg: string; rpc: string }
    if (msg === 'ready') return { folder, child, rpc, database, results: new Map<string, { us: number; perSecond: number }[]>() }
  }
  throw new Error(`${folder} did not start`)
}

const servers = []
for (const folder of folders) servers.push(await start(folder))

for (let round = 0; round <= ROUNDS; round++) {
  for (const { child, rpc, results } of servers) {
    for (const [name, sockets, width, method, params] of [
      ['ping, 8 × 32', 8, 32, 'ping', {}],
      ['addMessage, 8 × 32', 8, 32, 'addMessage', { recipientDids: ['did:key:z6Mk'], payload: PAYLOAD }],
      ['addMessage, 1 × 32', 1, 32, 'addMessage', { recipientDids: ['did:key:z6Mk'], payload: PAYLOAD }],
      ['addMessage, 1 × 256', 1, 256, 'addMessage', { recipientDids: ['did:key:z6Mk'], payload: PAYLOAD }],
    ] as const) {
      const open = await Promise.all(Array.from({ length: sockets }, () => openSocket(rpc)))
      const [cpu, at] = [cpuOf(child.pid!), performance.now()]
      await Promise.all(
        open.map((socket, s) =>
          inParallel(
            Array.from({ length: CALLS / sockets }, (_, n) => n),
            width,
            (n) => socket.call(method, { ...params, connectionId: `${round}-${s}-${n % 50}` }),
          ),
        ),
      )
      const result = { us: (cpuOf(child.pid!) - cpu) / CALLS, perSecond: (CALLS / (performance.now() - at)) * 1_000 }
      if (round > 0) results.set(name, [...(results.get(name) ?? []), result]) // the first warms up
      await Promise.all(open.map((socket) => socket.close()))
    }
  }
}
for (const { folder, results } of servers) {
  for (const [name, all] of results) {
    console.log(
      `${folder.padEnd(12)} ${name.padEnd(22)} ${median(all.map(({ us }) => us)).toFixed(1)} µs CPU/call, ${Math.round(median(all.map(({ perSecond }) => perSecond)))} calls/s`,
    )
  }
}
for (const { child } of servers) child.kill('SIGTERM')
await postgres.stop()
process.exit()
