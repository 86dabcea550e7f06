/*
 * Question: what does a message cost the service and Postgres on its way, in CPU, WAL and disk? The figures of docs/scale.md.
 *
 *   npx tsx bench/costs.ts [--json]
 *
 * One real server process, one Postgres, no other instance. Each stage is run three times; the median by Postgres CPU is shown.
 */
import { randomUUID } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import pg from 'pg'
import { createDatabase, startTestPostgres } from '../test/helpers/postgres.js'
import { startServer } from '../test/helpers/process.js'
import { DID } from '../test/helpers/service.js'
import { openMailboxes } from './mailboxes.js'
import { cpuOf, cpuOfFamily, machine, postmasterOf, printTable } from './measure.js'
import { inParallel, openSocket, type Delivered } from './socket.js'

const MESSAGES = 4_000
const RUNS = 3
const IN_FLIGHT = 128
const PER_SECOND = 200
const PAGE = 10
const payload = { ciphertext: 'x'.repeat(1_400) }

interface Cost {
  stage: string
  messages: number
  serviceUs: number
  postgresUs: number
  walBytes: number
}

const server = await startTestPostgres()
const database = await createDatabase(server.url)
const client = new pg.Client(database.url)
await client.connect()
const service = await startServer({ DATABASE_URL: database.url, LOG_LEVEL: 'info' })
const postmaster = await postmasterOf(client)
const costs: Cost[] = []
let bytesOnDisk = 0

async function stage(name: string, messages: number, work: () => Promise<unknown>): Promise<void> {
  const read = async () => {
    const { rows } = await client.query<{ at: string }>(`SELECT pg_current_wal_insert_lsn() - '0/0' AS at`)
    return [cpuOf(service.pid), cpuOfFamily(postmaster), Number(rows[0]!.at)]
  }
  const before = await read()
  await work()
  const [serviceUs, postgresUs, walBytes] = (await read()).map((value, i) => Math.round((value - before[i]!) / messages)) as [
    number,
    number,
    number,
  ]
  costs.push({ stage: name, messages, serviceUs, postgresUs, walBytes })
}

try {
  const socket = await openSocket(service.ws)
  const add = (connectionId: string) => socket.call('addMessage', { connectionId, recipientDids: [DID], payload })
  const take = async (connectionId: string, deleteMessages: boolean) => {
    for (;;) {
      const messages: Delivered[] = await socket.call('takeFromQueue', { connectionId, limit: PAGE, deleteMessages })
      if (messages.length === 0) return
      if (!deleteMessages) await socket.call('removeMessages', { connectionId, messageIds: messages.map(({ id }) => id) })
    }
  }
  for (let run = 0; run <= RUNS; run++) {
    await client.query('CHECKPOINT') // so that every run starts with the same full-page images to write
    const few = Array.from({ length: 200 }, () => randomUUID())
    const many = Array.from({ length: MESSAGES }, () => randomUUID())
    const toFew = Array.from({ length: MESSAGES }, (_, i) => few[i % few.length]!)
    const size = async () =>
      Number((await client.query<{ size: string }>(`SELECT pg_total_relation_size('queued_messages') AS size`)).rows[0]!.size)

    await client.query('VACUUM FULL queued_messages')
    const sizeBefore = await size()
    await stage('add, at full speed, 20 for each connection', MESSAGES, () => inParallel(toFew, IN_FLIGHT, add))
    bytesOnDisk = ((await size()) - sizeBefore) / MESSAGES
    await stage('add, at full speed, 1 for each connection', MESSAGES, () => inParallel(many, IN_FLIGHT, add))
    await stage(`take ${PAGE} and remove them`, MESSAGES, () => inParallel(few, 16, (id) => take(id, false)))
    await stage('take 1 with deleteMessages', MESSAGES, () => inParallel(many, 16, (id) => take(id, true)))

    const mailboxes = await openMailboxes(service.ws, 200, 4)
    await stage('add, deliver and ack, at full speed', MESSAGES, async () => {
      await inParallel(
        Array.from({ length: MESSAGES }, (_, i) => mailboxes.ids[i % mailboxes.ids.length]!),
        IN_FLIGHT,
        (id) => mailboxes.add(socket, id),
      )
      await mailboxes.settled()
    })
    await stage(`add, deliver and ack, at ${PER_SECOND} messages/s`, 5 * PER_SECOND, async () => {
      const running: Promise<void>[] = []
      for (let n = 0, started = performance.now(); n < 5 * PER_SECOND; await sleep(1)) {
        for (; n < Math.min(5 * PER_SECOND, ((performance.now() - started) / 1_000) * PER_SECOND); n++)
          running.push(mailboxes.add(socket, mailboxes.ids[n % mailboxes.ids.length]!))
      }
      await Promise.all(running)
      await mailboxes.settled()
    })
    await mailboxes.close()
    await stage('nothing, for 5 s (per second)', 5, () => sleep(5_000))
    if (mailboxes.faults.lost + mailboxes.faults.repeated + mailboxes.faults.outOfOrder > 0)
      throw new Error(JSON.stringify(mailboxes.faults))
    if (run === 0) costs.length = 0 // until the code is compiled
  }
  await socket.close()
} finally {
  await service.end('SIGTERM')
  await client.end()
  await database.drop()
  await server.stop()
}

const stages = [...new Set(costs.map(({ stage }) => stage))].map((name) => {
  const runs = costs.filter(({ stage }) => stage === name).sort((a, b) => a.postgresUs - b.postgresUs)
  return { ...runs[Math.floor(runs.length / 2)]!, allPostgresUs: runs.map(({ postgresUs }) => postgresUs) }
})
if (process.argv.includes('--json')) console.log(JSON.stringify({ ...machine(), bytesOnDisk, stages }, undefined, 2))
else {
  console.log(Object.values(machine()).join(' · '), '\n')
  printTable(
    ['per message', 'service CPU µs', 'Postgres CPU µs', 'WAL bytes', 'Postgres, all runs'],
    stages.map(({ stage, serviceUs, postgresUs, walBytes, allPostgresUs }) => [
      stage,
      serviceUs,
      postgresUs,
      walBytes,
      allPostgresUs.join(' '),
    ]),
  )
  console.log(
    `on disk, table and indexes: ${Math.round(bytesOnDisk)} bytes per message with a payload of ${JSON.stringify(payload).length} bytes`,
  )
}
