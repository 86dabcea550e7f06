import { randomUUID } from 'node:crypto'
import t, { type Test } from 'tap'
import { setTimeout as sleep } from 'node:timers/promises'
import { SEQS_IN_A_ROW } from '../plugins/storage/add-statements.js'
import { migrateDatabase } from '../plugins/storage/migrate.js'
import { createPostgresStore } from '../plugins/storage/postgres-store.js'
import { createPostgresSessions } from '../plugins/storage/postgres-sessions.js'
import { createQuery, type Query } from '../plugins/storage/query.js'
import { tallyStatements } from '../plugins/storage/tallies.js'
import type { MessageStore } from '../src/ports.js'
import { jsonBytes } from './helpers/json.js'
import { silent } from './helpers/postgres.js'
import { openPool, testDatabase } from './helpers/service.js'
import { byPromise } from './helpers/store.js'
import { until } from './helpers/until.js'

/*
 * Counts of deep queues without reading them. What is promised: in every snapshot, a tally less what was removed of it is what is there.
 */

const DID = 'did:key:a'

async function open(t: Test) {
  const connectionString = await testDatabase(t)
  await migrateDatabase({ connectionString }, { apply: true, log: silent })
  const pool = openPool(t, { connectionString, max: 20 })
  const query = createQuery(pool)
  const newStore = (more: { query?: Query; messageTtlSeconds?: number } = {}) =>
    byPromise(createPostgresStore({ query, instanceId: randomUUID(), messageTtlSeconds: 0, pushes: false, tallyWorthRows: 0, ...more }))

  const fill = (connectionId: string, messages: number) =>
    pool.query(
      `INSERT INTO queued_messages (connection_id, tag, recipient_dids, payload, payload_bytes)
      SELECT $1, 0, '{${DID}}', '{}', n % 7 FROM generate_series(1, $2::int) n`,
      [connectionId, messages],
    )
  const tallies = async () => (await pool.query<{ messages: string | null }>('SELECT messages FROM queue_tallies ORDER BY id')).rows
  /** Counts until there is a tally: none is begun while another one is being made. */
  const tallied = (store: MessageStore, connectionId: string) =>
    until(async () => {
      await store.count(connectionId)
      return (await tallies()).some(({ messages }) => messages !== null)
    }, 'a tally')
  /** A transaction of somebody else, open until it is ended. */
  const openTransaction = async (statement: string) => {
    const client = await pool.connect()
    await client.query(`BEGIN; ${statement}`)
    return { end: () => client.query('COMMIT').finally(() => client.release()) }
  }
  return { pool, query, newStore, fill, tallies, tallied, openTransaction }
}

/** Each tally, and what it should say, in one snapshot. */
const COMPARED = `
  SELECT t.connection_id, (t.messages - r.messages)::int AS messages, (t.bytes - r.bytes)::int AS bytes, m.messages::int AS there, m.bytes::int AS there_bytes
  FROM queue_tallies t,
    LATERAL (SELECT coalesce(sum(messages), 0) AS messages, coalesce(sum(bytes), 0) AS bytes FROM tallied_removals WHERE tally_id = t.id) r,
    LATERAL (SELECT count(*) AS messages, coalesce(sum(payload_bytes), 0) AS bytes FROM queued_messages WHERE connection_id = t.connection_id AND seq <= t.up_to_seq) m
  WHERE t.messages IS NOT NULL`
interface Compared {
  connection_id: string
  messages: number
  bytes: number
  there: number
  there_bytes: number
}
const isWrong = ({ messages, bytes, there, there_bytes }: Compared) => messages !== there || bytes !== there_bytes

t.test('a tally says what is there in every snapshot, whatever is written meanwhile', { timeout: 60_000 }, async (t) => {
  const { pool, newStore, fill, openTransaction } = await open(t)
  const stores = [newStore(), newStore()] as const
  const connections = ['a', 'b', 'c']
  for (const connectionId of connections) await fill(connectionId, 300)
  const end = performance.now() + 6_000
  const one = <T>(all: readonly T[]) => all[Math.floor(Math.random() * all.length)]!
  const often = async (what: (connectionId: string) => Promise<unknown>) => {
    while (performance.now() < end) await what(one(connections))
  }

  const payload = jsonBytes('{}')
  const seen = { compared: 0, wrong: [] as Compared[] }
  await Promise.all([
    ...Array.from({ length: 3 }, () =>
      often((connectionId) => one(stores).add({ connectionId, recipientDids: [one([DID, 'did:b'])], payload, payloadBytes: 5 })),
    ),
    often(async (connectionId) => {
      const head = await one(stores).take({ connectionId, limit: 5, limitBytes: 1_000_000, remove: false, leaseMs: 0 })
      await one(stores).remove(
        connectionId,
        head.map(({ id }) => id),
      )
    }),
    often((connectionId) => one(stores).take({ connectionId, limit: 2, limitBytes: 1_000_000, remove: true, leaseMs: 0 })),
    often((connectionId) =>
      one(stores)
        .removeAll(connectionId, 'did:b')
        .then(() => sleep(20)),
    ),
    // What others do, in transactions that stay open for a while.
    often(async (connectionId) => {
      const statement = one([
        `INSERT INTO queued_messages (connection_id, tag, recipient_dids, payload, payload_bytes) VALUES ('${connectionId}', 0, '{}', '', 3)`,
        `DELETE FROM queued_messages WHERE connection_id = '${connectionId}' AND seq / ${SEQS_IN_A_ROW} % 10 = 0`,
      ])
      const transaction = await openTransaction(statement)
      await sleep(Math.random() * 60)
      await transaction.end()
    }),
    often(async (connectionId) => {
      await fill(connectionId, 40)
      await sleep(30)
    }),
    // So many at a time that they have their seqs in a row.
    often(async (connectionId) => {
      const store = one(stores)
      await Promise.all(Array.from({ length: 150 }, () => store.add({ connectionId, recipientDids: [DID], payload, payloadBytes: 5 })))
      await sleep(30)
    }),
    ...stores.map((store) => often((connectionId) => store.count(connectionId))),
    often(async (connectionId) => {
      await one(stores).depth(connectionId)
      await stores[0].sweep(10)
    }),
    often(async () => {
      const { rows } = await pool.query<Compared>(COMPARED)
      seen.compared += rows.length
      seen.wrong.push(...rows.filter(isWrong))
    }),
  ])
  const { rows } = await pool.query<{ made: number }>('SELECT last_value::int AS made FROM queue_tallies_id_seq')
  t.comment(`${seen.compared} compared, of ${rows[0]!.made} that were made`)
  t.same(seen.wrong, [])
  t.ok(seen.compared > 100)
  t.ok(rows[0]!.made > 20)
})

for (const [what, statement, expected] of [
  ['a removal', `DELETE FROM queued_messages WHERE connection_id = 'a' AND payload_bytes = 0`, 86],
  ['an add', `INSERT INTO queued_messages (connection_id, tag, recipient_dids, payload, payload_bytes) VALUES ('a', 0, '{}', '', 3)`, 101],
] as const) {
  t.test(`${what} that is not committed when a tally is begun is waited for`, async (t) => {
    const { pool, newStore, query, fill, tallies, openTransaction } = await open(t)
    await fill('a', 100)
    const store = newStore()
    const transaction = await openTransaction(statement)
    await fill('b', 1) // its seq is higher, and it is there first
    t.equal(await store.count('a'), 100)
    await sleep(300)
    t.same(await tallies(), [{ messages: null }], 'it is begun, and not counted')
    await transaction.end()
    t.equal(await store.count('a'), expected)
    await until(async () => (await tallies()).every(({ messages }) => messages !== null), 'a tally that is counted')
    t.equal((await tallies()).length, 1)
    t.equal(await store.count('a'), expected)
    t.equal((await store.depth('a')).messages, expected)

    // One that does not wait is wrong, and the check above would tell.
    await fill('hasty', 100)
    const another = await openTransaction(statement.replaceAll(`'a'`, `'hasty'`))
    await fill('b', 1)
    const hasty: Query = (statement, values) => (statement === tallyStatements.writing ? Promise.resolve([]) : query(statement, values))
    await newStore({ query: hasty }).count('hasty')
    await until(
      async () => (await tallies()).length === 2 && (await tallies()).every(({ messages }) => messages !== null),
      'a tally that is counted',
    )
    await another.end()
    const { rows } = await pool.query<Compared>(COMPARED)
    t.same(
      rows.filter(isWrong).map(({ connection_id }) => connection_id),
      ['hasty'],
    )
  })
}

t.test('no tally is made while a transaction does not end', async (t) => {
  const { newStore, fill, tallies, openTransaction } = await open(t)
  await fill('a', 100)
  const transaction = await openTransaction(`DELETE FROM queued_messages WHERE connection_id = 'nobody'`)
  await newStore().count('a')
  await until(async () => (await tallies()).length === 1, 'a tally that is begun')
  await until(async () => (await tallies()).length === 0, 'a tally that is dropped')
  await transaction.end()
})

t.test('no tally is made of a table without the trigger, which was made anew', async (t) => {
  const { pool, newStore, fill, tallies } = await open(t)
  await fill('a', 100)
  await pool.query('DROP TRIGGER tally_removals ON queued_messages')
  const store = newStore()
  t.equal(await store.count('a'), 100)
  await sleep(200)
  t.same(await tallies(), [])
})

t.test('what a tally does not tell is counted message by message', async (t) => {
  const { pool, query, newStore, fill, tallied, tallies } = await open(t)
  const store = newStore({ messageTtlSeconds: 3_600 })
  await fill('a', 100)
  await tallied(store, 'a')
  // A tally that is wrong, to know who asks it.
  await pool.query('UPDATE queue_tallies SET messages = 1000')
  t.equal(await store.count('a'), 1_000)
  t.equal((await store.depth('a')).messages, 1_000)
  t.equal(await store.count('a', DID), 100, 'for a DID')

  const sessions = createPostgresSessions({ pool, query })
  await sessions.renew()
  const { epoch } = await sessions.open({ connectionId: 'a', sessionId: 's' })
  await fill('a', 3)
  await store.claim({ connectionId: 'a', epoch, limit: 2, limitBytes: 1_000, alone: true, leaseMs: 30_000 })
  t.equal(await store.count('a'), 101, 'in a live session, where some are in flight')
  await sessions.close({ connectionId: 'a', epoch })

  await pool.query(
    `UPDATE queued_messages SET accepted_at = now() - interval '59 minutes 30 s' WHERE seq = (SELECT min(seq) FROM queued_messages)`,
  )
  t.equal(await store.count('a'), 103, 'where the first one is about to expire')
  await pool.query(`UPDATE queued_messages SET accepted_at = now()`)
  await pool.query(`UPDATE queue_tallies SET counted_at = now() - interval '61 minutes'`)
  t.equal(await store.count('a'), 103, 'after an hour')
  await store.sweep(10)
  t.notOk(
    (await tallies()).some(({ messages }) => messages === '1000'),
    'then it is forgotten',
  )

  await pool.query('DELETE FROM queue_tallies')
  await tallied(store, 'a')
  await pool.query('UPDATE queue_tallies SET messages = 1000')
  await pool.query('TRUNCATE queued_messages')
  t.equal(await store.count('a'), 0, 'where nothing is left of it')
  await fill('a', 5)
  t.equal(await store.count('a'), 5)
  t.equal((await store.depth('a')).messages, 5)
})

t.test('a tally is made when counts have read as much as that costs, and shallow queues have none', async (t) => {
  const { pool, query, fill, tallies } = await open(t)
  const store = createPostgresStore({ query, instanceId: randomUUID(), messageTtlSeconds: 0, pushes: false })
  await fill('shallow', 100)
  await fill('deep', 1_500)
  for (let i = 0; i < 50; i++) await store.count('shallow')
  t.equal(await store.count('deep'), 1_500)
  await sleep(100)
  t.same(await tallies(), [])
  t.equal(await store.count('deep'), 1_500)
  await until(async () => (await tallies())[0]?.messages === '1500', 'a tally that is counted')
  await pool.query(`DELETE FROM queued_messages WHERE connection_id = 'deep' AND seq / ${SEQS_IN_A_ROW} % 2 = 0`)
  t.equal(await store.count('deep'), 750)
  for (let i = 0; i < 20; i++) await store.count('deep')
  await sleep(100)
  t.same(await tallies(), [{ messages: '1500' }], 'it serves')
  await fill('deep', 1_500)
  for (let i = 0; i < 2; i++) t.equal(await store.count('deep'), 2_250)
  await until(async () => (await tallies()).length === 1 && (await tallies())[0]!.messages === '2250', 'a tally that is replaced')
  const { rows } = await pool.query('SELECT FROM tallied_removals')
  t.equal(rows.length, 0, 'and what was removed of the former one is forgotten')
})
