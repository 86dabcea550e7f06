/**
 * Does a take of 10 cost the same from a queue of 10 as from one of 100,000, in a table of a million messages?
 *
 *   npx tsx bench/depth.ts [--json] [--fresh]
 *
 * One socket, one call at a time, the two queues in turn; every answer is compared with the table. --fresh lets the
 * service make its plans on the empty table and never gathers statistics: a new installation that fills up at once.
 * Ends with 1 when the larger queue takes more than 1.5 times as long. The counts are told but not judged: counting
 * reads what it counts.
 */
import { execFileSync } from 'node:child_process'
import { once } from 'node:events'
import { readdirSync, readFileSync } from 'node:fs'
import { cpus } from 'node:os'
import { setTimeout as sleep } from 'node:timers/promises'
import Fastify from 'fastify'
import pg from 'pg'
import WebSocket from 'ws'
import app, { serverOptions } from '../app.js'
import { readConfig } from '../src/config.js'
import { createDatabase, startTestPostgres } from '../test/helpers/postgres.js'

const MESSAGES = 1_000_000
const PAYLOAD_BYTES = 1_500 // of the two queues; the others' are small, because filling is not what is measured
const ROUNDS = 9
const CALLS = { take: 200, add: 100, count: 10 }
const MAX_RATIO = 1.5
const DID = 'did:key:z6MkhaXgBZDvotDkL5257faiztiGiC2QtKLGpbnnEGta2doK'
const QUEUES = [
  { connectionId: 'a queue of 10', depth: 10 },
  { connectionId: 'a queue of 100,000', depth: 100_000 },
]

const FILLER = 'x'.repeat(PAYLOAD_BYTES - 60)
const envelope = (n: number) => ({ protected: 'e30', ciphertext: `${n} ${FILLER}` })
const envelopeSql = (n: string) => `'{"protected":"e30","ciphertext":"' || ${n} || ' ${FILLER}"}'`

type Operation = keyof typeof CALLS
/** Of one round: median microseconds of a call, and what Postgres worked for it. */
interface Sample {
  us: number
  postgresUs: number | undefined
  timeouts: number
}

/** The service's answer after 1.2 s. Here it is a result like any other. */
const TIMEOUT = Symbol('timeout')

const isFresh = process.argv.includes('--fresh')
const postgres = await startTestPostgres()
const database = await createDatabase(postgres.url)
const service = Fastify(serverOptions(readConfig({ LOG_LEVEL: 'silent' })))
const client = new pg.Client(database.url)
let ratio: number
try {
  await client.connect()
  ratio = await measure()
} finally {
  await client.end()
  await service.close()
  await database.drop()
  await postgres.stop()
}
process.exitCode = ratio > MAX_RATIO ? 1 : 0

async function measure(): Promise<number> {
  const config = readConfig({ PORT: '0', LOG_LEVEL: 'silent', QUOTA_MESSAGES: '0', DATABASE_URL: database.url })
  await service.register(app, { config })
  const url = await service.listen({ host: config.HOST, port: 0 })
  const mediator = await connect(`${url.replace('http', 'ws')}/ws`)
  const operations: Record<Operation, (connectionId: string) => Promise<unknown>> = {
    take: (connectionId) => mediator.call('takeFromQueue', { connectionId, limit: 10 }),
    add: (connectionId) => mediator.call('addMessage', { connectionId, recipientDids: [DID], payload: envelope(0) }),
    count: (connectionId) => mediator.call('getAvailableMessageCount', { connectionId }),
  }

  const makePlans = async () => {
    for (const operation of ['take', 'count'] as const) await operations[operation]('nobody')
  }

  if (isFresh) {
    for (const table of ['queued_messages', 'live_sessions', 'instances'])
      await client.query(`ALTER TABLE ${table} SET (autovacuum_enabled = off)`)
    // As often as Postgres needs to decide for the plan that it keeps.
    for (let i = 0; i < 20; i++) await makePlans()
  }
  let filling = true
  const filled = fill().finally(() => (filling = false))
  // A connection that idles is closed after 10 s, and its plans with it.
  for (; isFresh && filling; await sleep(500)) await makePlans()
  await filled
  if (!isFresh) await client.query('VACUUM ANALYZE')
  await client.query('CHECKPOINT')
  const heads = new Map<string, string>()
  for (const { connectionId } of QUEUES) heads.set(connectionId, await readHead(connectionId))

  const server = await findPostgres()
  const samples: Record<Operation, Sample[][]> = { take: [[], []], add: [[], []], count: [[], []] }
  for (const operation of ['take', 'count', 'add'] as const) {
    for (const { connectionId } of QUEUES) for (let i = 0; i < CALLS[operation] / 10; i++) await operations[operation](connectionId)
    for (let round = 0; round < ROUNDS; round++) {
      for (const which of round % 2 === 0 ? [0, 1] : [1, 0]) {
        const { connectionId } = QUEUES[which]!
        const answers: unknown[] = []
        const times: number[] = []
        const before = cpuOf(server)
        for (let i = 0; i < CALLS[operation]; i++) {
          const start = performance.now()
          answers.push(await operations[operation](connectionId))
          times.push((performance.now() - start) * 1_000)
        }
        const after = cpuOf(server)
        samples[operation][which]!.push({
          us: median(times),
          postgresUs: before && after ? (sumOfGrowth(before, after) / CALLS[operation]) * 1_000_000 : undefined,
          timeouts: answers.filter((answer) => answer === TIMEOUT).length,
        })
        check(operation, which, answers, heads.get(connectionId)!)
      }
    }
  }
  mediator.close()
  const { rows } = await client.query<{ version: string }>("SELECT current_setting('server_version') AS version")
  return report(samples, rows[0]!.version)
}

function check(operation: Operation, which: number, answers: unknown[], head: string): void {
  const { connectionId, depth } = QUEUES[which]!
  for (const answer of answers) {
    if (answer === TIMEOUT) continue
    const isRight =
      operation === 'take'
        ? JSON.stringify((answer as { id: string; encryptedMessage: object }[]).map((m) => [m.id, m.encryptedMessage])) === head
        : operation === 'count'
          ? answer === depth
          : typeof answer === 'string'
    if (!isRight) throw new Error(`wrong answer to ${operation} of ${connectionId}: ${JSON.stringify(answer).slice(0, 300)}`)
  }
}

/** The messages of the two queues lie between those of 10,000 others, as if all had come in turn. */
async function fill(): Promise<void> {
  const [small, large] = QUEUES.map(({ connectionId }) => pg.escapeLiteral(connectionId))
  await client.query(`
    INSERT INTO queued_messages (connection_id, seq, tag, recipient_dids, payload, payload_bytes, accepted_at)
    SELECT connection_id, n, 35, '{${DID}}', payload, length(payload), now() - interval '1 hour' + n * interval '1 ms'
    FROM generate_series(1, ${MESSAGES}) n,
      LATERAL (SELECT CASE WHEN n % 10 = 0 THEN ${large} WHEN n % 100000 = 5 THEN ${small} ELSE 'connection ' || n % 10007 END AS connection_id) c,
      LATERAL (SELECT CASE WHEN connection_id LIKE 'a queue of%' THEN ${envelopeSql('n')} ELSE '{"ciphertext":"small"}' END AS payload) p;
    SELECT setval('queued_messages_seq_seq', ${MESSAGES})`)
}

/** What a take of 10 must answer. */
async function readHead(connectionId: string): Promise<string> {
  const { rows } = await client.query<{ seq: string; tag: number; payload: string }>(
    'SELECT seq, tag, payload FROM queued_messages WHERE connection_id = $1 ORDER BY seq LIMIT 10',
    [connectionId],
  )
  if (rows.length !== 10) throw new Error(`${connectionId} has ${rows.length} messages`)
  return JSON.stringify(rows.map(({ seq, tag, payload }) => [`${seq}-${tag.toString(36)}`, JSON.parse(payload)]))
}

async function connect(url: string) {
  const socket = new WebSocket(url, { perMessageDeflate: false })
  await once(socket, 'open')
  let id = 0
  return {
    close: () => socket.terminate(),
    async call(method: string, params: object): Promise<unknown> {
      const answered = once(socket, 'message')
      socket.send(JSON.stringify({ jsonrpc: '2.0', id: ++id, method, params }))
      const [data] = (await answered) as [Buffer]
      const frame = JSON.parse(data.toString()) as { id: number; result?: unknown; error?: { data: { code: string } } }
      if (frame.id === id && frame.error?.data.code === 'timeout') return TIMEOUT
      if (frame.id !== id || frame.error) throw new Error(`${method}: ${JSON.stringify(frame).slice(0, 300)}`)
      return frame.result
    },
  }
}

/** @returns the pid of the server, when it runs on this machine and this is Linux */
async function findPostgres(): Promise<number | undefined> {
  const { rows } = await client.query<{ pid: number }>('SELECT pg_backend_pid() AS pid')
  const found = parentAndName(rows[0]!.pid)
  return found?.name === 'postgres' ? found.parent : undefined
}

function parentAndName(pid: number | string): { parent: number; name: string } | undefined {
  try {
    const [, name, rest] = /\((.*)\) (.*)/.exec(readFileSync(`/proc/${pid}/stat`, 'utf8')) ?? []
    return { parent: Number(rest!.split(' ')[1]), name: name! }
  } catch {
    return undefined
  }
}

/** Seconds of CPU per process of the server. schedstat has nanoseconds where stat has only hundredths of a second. */
function cpuOf(server: number | undefined): Map<string, number> | undefined {
  if (server === undefined) return undefined
  const pids = readdirSync('/proc').filter((pid) => /^\d+$/.test(pid) && (Number(pid) === server || parentAndName(pid)?.parent === server))
  return new Map(
    pids.flatMap((pid) => {
      try {
        return [[pid, Number(readFileSync(`/proc/${pid}/schedstat`, 'utf8').split(' ')[0]) / 1e9]]
      } catch {
        return [] // it has ended
      }
    }),
  )
}

function sumOfGrowth(before: Map<string, number>, after: Map<string, number>): number {
  return [...after].reduce((sum, [pid, seconds]) => sum + seconds - (before.get(pid) ?? 0), 0)
}

function median(values: number[]): number {
  const sorted = [...values].sort((a, b) => a - b)
  return sorted[Math.floor(sorted.length / 2)]!
}

function report(samples: Record<Operation, Sample[][]>, postgresVersion: string): number {
  const git = (...words: string[]) => execFileSync('git', words, { encoding: 'utf8', cwd: import.meta.dirname }).trim()
  const facts = {
    machine: `${cpus().length} x ${cpus()[0]?.model ?? 'unknown'}`,
    node: process.version,
    postgres: postgresVersion,
    commit: git('rev-parse', '--short', 'HEAD') + (git('status', '--porcelain') ? ' and changes' : ''),
    plans: isFresh ? 'made on the empty table, no statistics' : 'with statistics',
    method: `medians of ${ROUNDS} rounds of ${CALLS.take} takes, ${CALLS.add} adds, ${CALLS.count} counts, ${MESSAGES} messages in the table`,
  }
  const rows = (Object.keys(CALLS) as Operation[]).flatMap((operation) => {
    const [small, large] = samples[operation].map((rounds) => ({
      us: Math.round(median(rounds.map(({ us }) => us))),
      postgresUs: rounds[0]?.postgresUs === undefined ? undefined : Math.round(median(rounds.map(({ postgresUs }) => postgresUs ?? NaN))),
    }))
    const timeouts = samples[operation].map((rounds) => rounds.reduce((sum, round) => sum + round.timeouts, 0))
    const of = (what: 'us' | 'postgresUs') => ({
      of10: small![what],
      of100000: large![what],
      ratio: (large![what] ?? NaN) / (small![what] ?? NaN),
    })
    return [
      { operation, what: 'time', ...of('us') },
      { operation, what: 'Postgres CPU', ...of('postgresUs') },
      ...(timeouts.some((count) => count > 0)
        ? [{ operation, what: 'timeouts', of10: timeouts[0], of100000: timeouts[1], ratio: NaN }]
        : []),
    ]
  })
  const judged = rows[0]!.ratio
  if (process.argv.includes('--json')) console.log(JSON.stringify({ ...facts, rows, maxRatio: MAX_RATIO, ratio: judged }))
  else {
    for (const [name, value] of Object.entries(facts)) console.log(`${name.padEnd(9)} ${value}`)
    console.log(`\n| µs per call | a queue of 10 | a queue of 100,000 | ratio |\n|---|---:|---:|---:|`)
    for (const { operation, what, of10, of100000, ratio } of rows)
      console.log(`| ${operation}, ${what} | ${of10 ?? '–'} | ${of100000 ?? '–'} | ${Number.isNaN(ratio) ? '–' : ratio.toFixed(2)} |`)
    console.log(`\nA take from the larger queue takes ${judged.toFixed(2)} times as long; at most ${MAX_RATIO} is allowed.`)
  }
  return judged
}
