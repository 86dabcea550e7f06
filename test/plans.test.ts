import pg from 'pg'
import t from 'tap'
import { migrateDatabase } from '../plugins/storage/migrate.js'
import { createPostgresSessions } from '../plugins/storage/postgres-sessions.js'
import { statements } from '../plugins/storage/postgres-store.js'
import { createQuery, type Statement } from '../plugins/storage/query.js'
import { DID, testDatabase } from './helpers/service.js'

/*
 * Reads the plan of every hot statement in a table of 1 M messages: none may scan a table, leave its own queue, or read
 * more of it than its limit. A plan is made once per connection and kept, so it is looked at as it is made at three
 * times: on the empty table of a new installation, on a full table without statistics, and with statistics.
 */

const MESSAGES = 1_000_000
const DEEP = 'deep' // a tenth of all messages
const DEEP_MESSAGES = MESSAGES / 10
const SHALLOW = 'connection 7' // one of 10,000
const SHALLOW_MESSAGES = 90
const EXPIRED = 5_000
const SESSIONS = 3_000
const TTL = '2592000 seconds'
const MIB = 1024 * 1024

/** A live session of the connection that began before anything arrived: all of its queue is to be delivered. */
const LIVE = (connectionId: string) => `INSERT INTO live_sessions (connection_id, session_id, epoch, expires_at, since, since_seq)
  VALUES ('${connectionId}', 's', 7777777, now() + interval '1 minute', '1:1:', 0)`

interface Case {
  title: string
  statement: Statement
  values: unknown[]
  before?: string
  /** Rows of queued_messages, of all its scans together. A statement that picks and then changes reads each row twice. */
  maxReads: number
  /** The root and two more levels of the primary key, live_sessions and instances are in FIXED_PAGES. */
  maxPages: number
  /** How many rows it gives, so that it is known to have worked. */
  gives: number
}

const FIXED_PAGES = 60

const log = { debug() {}, info() {}, warn() {}, error() {} }

t.test('in a table of a million messages', async (t) => {
  const connectionString = await testDatabase(t)
  await migrateDatabase({ connectionString }, { apply: true, log })
  const pool = new pg.Pool({ connectionString })
  t.teardown(() => pool.end())
  // What autovacuum knows, and when, is decided below.
  for (const table of ['queued_messages', 'live_sessions', 'instances']) await pool.query(`ALTER TABLE ${table} SET (autovacuum_enabled = off)`)

  const session = await sessionStatements(pool)
  const early = await connectLikeService(connectionString, 'force_generic_plan')
  const generic = await connectLikeService(connectionString, 'force_generic_plan')
  const custom = await connectLikeService(connectionString, 'force_custom_plan')
  t.teardown(() => Promise.all([early, generic, custom].map(({ end }) => end())))

  for (const { statement, values } of cases(session)) await early.explain(statement, values)
  await fill(pool, session.instanceId)

  t.test('a plan made while the table was empty reads only what it needs', (t) => check(t, early))
  t.test('without statistics a generic plan reads only what it needs', (t) => check(t, generic))
  t.test('without statistics a custom plan reads only what it needs', (t) => check(t, custom))
  t.test('with statistics a generic plan reads only what it needs', async (t) => {
    await pool.query('ANALYZE')
    await check(t, generic)
  })
  t.test('with statistics a custom plan reads only what it needs', (t) => check(t, custom))

  async function check(t: Tap.Test, { explain }: Connection): Promise<void> {
    for (const { title, statement, values, before, maxReads, maxPages, gives } of cases(session)) {
      const plan = await explain(statement, values, before)
      const nodes = [...nodesOf(plan)]
      const scans = nodes.filter((node) => node['Relation Name'] === 'queued_messages' && /Scan/.test(node['Node Type']))
      const reads = scans.reduce((sum, node) => sum + rowsRead(node), 0)
      const pages = plan['Shared Hit Blocks'] + plan['Shared Read Blocks']
      const faults = [
        ...nodes.filter((node) => node['Node Type'] === 'Seq Scan').map((node) => `scans ${node['Relation Name']}`),
        ...(statement === statements.expire ? [] : scans.filter((node) => !isKeyed(node)).map((node) => `${node['Node Type']} of all queues`)),
        ...(reads > maxReads ? [`reads ${reads} messages, not ${maxReads}`] : []),
        ...(pages > maxPages + FIXED_PAGES ? [`touches ${pages} pages, not ${maxPages + FIXED_PAGES}`] : []),
        ...(plan['Actual Rows'] === gives ? [] : [`gives ${plan['Actual Rows']} rows, not ${gives}`]),
      ]
      if (process.env.PLANS) console.error(`${title.padEnd(45)} reads ${reads}/${maxReads} pages ${pages}/${maxPages + FIXED_PAGES} rows ${plan['Actual Rows']} ms ${plan['Actual Total Time']}`)
      t.same(faults, [], title, faults.length > 0 ? { plan: JSON.stringify(plan, keepShape) } : {})
    }
  }
})
