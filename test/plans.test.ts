import { randomUUID } from 'node:crypto'
import Fastify from 'fastify'
import pg from 'pg'
import t, { type Test } from 'tap'
import { addStatement, type Asked, type Parameter } from '../plugins/storage/add-statements.js'
import storage from '../plugins/storage/index.js'
import { formatId } from '../plugins/storage/message-id.js'
import { createPostgresAdministration } from '../plugins/storage/postgres-administration.js'
import { outboxStatements } from '../plugins/storage/postgres-outbox.js'
import { statements } from '../plugins/storage/postgres-store.js'
import { readConfig } from '../src/config.js'
import type { SessionDirectory } from '../src/ports.js'
import { DID, testDatabase } from './helpers/service.js'
import { watchStatements } from './helpers/statements.js'

/*
 * Reads the plan of every hot statement in a table of a million messages: none may scan a table, leave its own queue, or
 * read more of it than its limit. A connection to the database keeps a plan once it has made it, so the plans are looked
 * at as they are made on the empty table of a new installation, on a full table without statistics, and with them.
 * PLANS=1 prints what each statement read.
 */

const DEEP = 'deep' // every tenth message
const DEEP_MESSAGES = 100_000
const SHALLOW = 'connection 7' // one of 10,000
const SHALLOW_MESSAGES = 90
const MESSAGES = 1_000_000
const EXPIRED = 5_000 // and these are over
const OWN_SESSIONS = 1_000 // of this instance, a third of all
const NEWS = 10 // of them have a message to deliver
const SESSIONS_OVER = 333 // sessions without a socket whose time is over
const TTL = '2592000 seconds'
const EPOCH = 7_777_777
const TABLES = [
  'queued_messages',
  'live_sessions',
  'instances',
  'push_tokens',
  'push_outbox',
  'push_reasons',
  'removed_keys',
  'queue_tallies',
  'tallied_removals',
]

/** In one statement the pages of indexes above the leaves, of live_sessions and of instances. */
const FIXED_PAGES = 60
const PAGES_PER_READ = 4
/** A new version of the row and an entry in each of three indexes. */
const PAGES_PER_WRITE = 30
/** A session that ends may owe a push. */
const PAGES_PER_END = 2 * PAGES_PER_READ + PAGES_PER_WRITE

interface Case {
  title: string
  text: string
  values: (Value | Value[])[]
  /** What is so when the statement runs. */
  given?: string
  /** Rows that it must give or change, so that it is known to have worked. */
  rows: number
  /** Rows that it writes, when it does not give each. */
  writes?: number
  /** The most rows of queued_messages that it may read. What is picked first and then changed is read twice. */
  reads: number
  pages: number
}

t.test('in a table of a million messages', (t) => readPlans(t))

/*
 * The queue of a quiet hour: VACUUM finds one message on thousands of pages. From then on, until it comes again, Postgres believes of any
 * number of pages that there is next to nothing on them, and that all there is can be read as well.
 */
t.test('in a table that was nearly empty when it was vacuumed', (t) => readPlans(t, emptyAndVacuum))

async function readPlans(t: Test, before?: (pool: pg.Pool) => Promise<void>): Promise<void> {
  // The service's own pool, so that its settings are those that count.
  const app = Fastify()
  t.teardown(() => app.close())
  await app.register(storage, {
    config: readConfig({ DATABASE_URL: await testDatabase(t), FIREBASE_CREDENTIALS: 'for the statements that owe pushes' }),
  })
  const { pool } = app.pg
  const early = await connect(pool, 'force_generic_plan')
  const generic = await connect(pool, 'force_generic_plan')
  const custom = await connect(pool, 'force_custom_plan')
  t.teardown(() => [early, generic, custom].forEach(({ release }) => release()))
  // So that statistics are there when this test says so.
  for (const table of TABLES) await pool.query(`ALTER TABLE ${table} SET (autovacuum_enabled = off)`)

  const cases = [...queueCases(), ...(await sessionCases(pool, app.sessions))]
  const administration = await administrationCases(pool)
  await before?.(pool)
  for (const { text, values } of cases) await early.explain(text, values)
  await fill(pool)

  t.test('plans made while it was empty read what they need and no more', (t) => check(t, early))
  t.test('generic plans without statistics read what they need and no more', (t) => check(t, generic, administration))
  t.test('custom plans without statistics read what they need and no more', (t) => check(t, custom, administration))
  if (before) return
  t.test('generic plans with statistics read what they need and no more', async (t) => {
    await pool.query({ ...UNHURRIED, text: 'SET LOCAL statement_timeout = 0; ANALYZE' } as pg.QueryConfig)
    await check(t, generic, administration)
  })
  t.test('custom plans with statistics read what they need and no more', (t) => check(t, custom, administration))

  async function check(t: Asserts, { explain }: Connection, more: Case[] = []): Promise<void> {
    for (const { title, text, values, given, rows, reads, pages } of [...cases, ...more]) {
      const { plan, isCompiled } = await explain(text, values, given)
      const found = measure(plan)
      if (process.env.PLANS)
        console.error(title.padEnd(60), `${found.reads}/${reads} rows, ${found.pages}/${pages} pages, ${plan['Actual Total Time']} ms`)
      const faults = [
        ...found.faults,
        ...(isCompiled ? ['JIT, which takes longer than the statement'] : []), // where Postgres has it; the embedded one has not
        ...(found.rows === rows ? [] : [`${found.rows} rows came, not ${rows}`]),
        ...(found.reads <= reads ? [] : [`${found.reads} messages read, ${reads} would do`]),
        ...(found.pages <= pages ? [] : [`${found.pages} pages touched, ${pages} would do`]),
      ]
      t.same(faults, [], title, faults.length > 0 ? { plan: outline(plan) } : {})
    }
  }
}

function queueCases(): Case[] {
  const all: Omit<Case, 'pages'>[] = []
  for (const { queue, depth } of [
    { queue: DEEP, depth: DEEP_MESSAGES },
    { queue: SHALLOW, depth: SHALLOW_MESSAGES },
  ]) {
    const live = LIVE(queue, 0)
    const add = (title: string, text: string, values: (Value | Value[])[], expected: { rows: number; reads: number; given?: string }) =>
      all.push({ title: `${title}, ${depth} waiting`, text, values: [queue, ...values], ...expected })
    const ofTen = [null, TTL, 10, 8_388_608]
    add('take of 10', statements.take.text, [...ofTen, 30_000], { rows: 10, reads: 10 })
    add('take of 10 for a DID', statements.take.text, [DID, ...ofTen.slice(1), 30_000], { rows: 10, reads: 10 })
    add('take of 10 for a DID without mail', statements.take.text, ['did:x', ...ofTen.slice(1), 30_000], { rows: 1, reads: depth })
    add('take of 10 in a live session', statements.take.text, [...ofTen, 30_000], { rows: 1, reads: 0, given: live })
    add('take of 10, marked', statements.takeMarked.text, [...ofTen, 30_000], { rows: 10, reads: 20, given: live })
    add('take of 10, deleted', statements.takeDeleted.text, ofTen, { rows: 10, reads: 20 })
    add('take of 10, deleted, in a live session', statements.takeDeleted.text, ofTen, { rows: 10, reads: 20, given: live })
    add('count', statements.count.text, [null, TTL], { rows: 1, reads: depth + 1 })
    add('count with a tally', statements.count.text, [null, TTL], { rows: 1, reads: 11, given: TALLY(queue) })
    add('count in a live session', statements.count.text, [DID, TTL], { rows: 1, reads: depth, given: live })

    add('remove of all for a DID', statements.removeAll.text, [DID], { rows: depth, reads: depth })
    all.push({ title: `depth, ${depth} waiting`, text: statements.depth.text, values: [[queue]], rows: 1, reads: depth })
    const withTally = { values: [[queue]], rows: 1, reads: 11, given: TALLY(queue) }
    all.push({ title: `depth with a tally, ${depth} waiting`, text: statements.depth.text, ...withTally })
    const claimed = [EPOCH, TTL, 50, 1_048_576, true, 30_000, null]
    add('claim of 50', statements.claim.text, claimed, { rows: 50, reads: 101, given: live })
    add('claim of nothing new', statements.claim.text, claimed, { rows: 1, reads: 0, given: LIVE(queue, MESSAGES) })
    add('claim for a session that is over', statements.claim.text, claimed, { rows: 1, reads: 0 })
  }
  const together = (bytes: number) => [[DEEP, SHALLOW], [10, 10], TTL, 30_000, bytes]
  all.push(
    { title: 'takes of 10 together', text: statements.takeMany.text, values: together(65_536), rows: 20, reads: 40 },
    { title: 'takes of 10 together, none of a small page', text: statements.takeMany.text, values: together(1), rows: 2, reads: 20 },
    {
      title: 'takes of 10 together, one in a live session',
      text: statements.takeMany.text,
      values: together(65_536),
      given: LIVE(DEEP, 0),
      rows: 11,
      reads: 20,
    },
  )
  all.push({ title: 'by key', text: statements.byKey.text, values: [DEEP, 'key 500000', '{}'], rows: 1, reads: 1 })

  const news = Array.from({ length: 50 }, (_, i) => (i % 2 ? DEEP : SHALLOW))
  const wakings = news.map((_, i) => (i % 2 ? `hash ${i}` : null))
  const given: Record<Parameter, Value | Value[]> = {
    tag: 0,
    instance_id: randomUUID(),
    lease_ms: 30_000,
    at_most_messages: SHALLOW_MESSAGES,
    connection_id: news,
    dids: news.map(() => `{"${DID}"}`),
    bytes: news.map(() => 2),
    received_at: news.map(() => null),
    idempotency_key: news.map((_, i) => (i % 2 ? `key ${i * 1_000 + 10}` : `new ${i}`)), // half of them are there
    epoch: news.map(() => EPOCH),
    after_seq: news.map(() => MESSAGES),
    at_most_bytes: news.map(() => 1_000_000),
    token_hash: wakings,
    type: news.map(() => 'fcm'),
    project: news.map(() => ''),
    token: wakings,
    payload: news.map(() => '{}'),
  }
  const nothing = { times: false, keys: false, claims: false, bounds: false, pushes: false, several: false, many: false }
  const addOf50 = (title: string, asked: Partial<Asked>, expected: Pick<Case, 'rows' | 'writes' | 'reads' | 'given'>) => {
    const { text, parameters } = addStatement({ ...nothing, ...asked })
    all.push({ title: `add of 50${title}`, text, values: parameters.map((parameter) => given[parameter]), ...expected })
  }
  addOf50('', {}, { rows: 50, reads: 0 })
  addOf50(' in a row', { many: true }, { rows: 1, writes: 50, reads: 0, given: LIVE(DEEP, 0) })
  addOf50(' for several recipients each', { several: true }, { rows: 50, reads: 0 })
  addOf50(' with keys', { keys: true }, { rows: 25, reads: 25 })
  const readByBounds = 25 * (2 * SHALLOW_MESSAGES + 1)
  addOf50(' to where few wait, half of them to a deep queue', { bounds: true }, { rows: 25, reads: readByBounds })
  addOf50(', claiming', { claims: true }, { rows: 50, reads: 0, given: LIVE(DEEP, 0) })
  addOf50(', owing pushes', { pushes: true }, { rows: 50, reads: 0 })
  addOf50(' with keys, owing pushes', { keys: true, pushes: true }, { rows: 25, reads: 25 })
  const everything = { times: true, keys: true, claims: true, bounds: true, pushes: true, several: true }
  addOf50(' with all there is', everything, { rows: 25, reads: 25 + readByBounds, given: LIVE(DEEP, 0) })
  all.push({ title: 'forget 1,000 keys', text: statements.forget.text, values: [1_000], rows: 1_000, reads: 0 })
  const acked = [DEEP, SHALLOW].flatMap((queue) => seqsOf(queue, 10).map((seq) => ({ queue, seq })))
  all.push({
    title: 'remove of 10 from each of two queues',
    text: statements.remove.text,
    values: [acked.map(({ queue }) => queue), acked.map(({ seq }) => seq), acked.map(() => 0)],
    rows: 20,
    reads: 20,
  })
  const dueHashes = Array.from({ length: 50 }, (_, i) => `hash ${i}`)
  all.push({ title: 'claim of 50 pushes', text: outboxStatements.claim.text, values: [50, 1, 1_000], rows: 50, reads: 50 })
  all.push({
    title: 'look at 50 pushes',
    text: outboxStatements.look.text,
    values: [dueHashes, 1],
    given: `UPDATE push_outbox SET claim = 1, sent_connection_id = 'connection 7', sent_seq = 0, window_until = now() + interval '1 s'
      WHERE token_hash = ANY (ARRAY (SELECT 'hash ' || n FROM generate_series(0, 49) n));
      UPDATE push_reasons SET claim = 1 WHERE token_hash = ANY (ARRAY (SELECT 'hash ' || n FROM generate_series(0, 49) n))`,
    rows: 50,
    reads: 250, // and as many looks at the sessions, reasons and tokens
  })
  const one = ['hash 7', 1]
  const sending = `UPDATE push_outbox SET claim = 1 WHERE token_hash = 'hash 7'; UPDATE push_reasons SET claim = 1 WHERE token_hash = 'hash 7'`
  all.push({
    title: 'a push was sent',
    text: outboxStatements.sent.text,
    values: [...one, 'connection 7', null, 5_000],
    given: sending,
    rows: 1,
    reads: 1,
  })
  all.push({
    title: 'a push is tried again',
    text: outboxStatements.again.text,
    values: [...one, 1_000, 1],
    given: sending,
    rows: 1,
    reads: 0,
  })
  all.push({ title: 'a token is dead', text: outboxStatements.dead.text, values: [...one, 'why'], given: sending, rows: 1, reads: 0 })
  all.push({ title: 'sweep of pushes', text: outboxStatements.sweep.text, values: [], rows: 1_000, reads: 0 })
  all.push({ title: 'expire of 1,000', text: statements.expire.text, values: [TTL, 1_000], rows: 1_000, reads: 2_000 })
  return all.map((one) => ({
    ...one,
    pages: FIXED_PAGES + one.reads * PAGES_PER_READ + (/INSERT|UPDATE/.test(one.text) ? (one.writes ?? one.rows) * PAGES_PER_WRITE : 0),
  }))
}

/**
 * What is keyed; the lists across connections read everything, and say so. These statements have no names, so that they are planned
 * each time and none keeps a plan made while the table was empty.
 */
async function administrationCases(pool: pg.Pool): Promise<Case[]> {
  const administration = createPostgresAdministration({ pool })
  const { caught, stop } = catchStatements()
  const all: Case[] = []
  const add = async (title: string, call: Promise<unknown>, expected: Pick<Case, 'rows' | 'writes' | 'reads' | 'given'>) =>
    all.push({ title, ...(await caught(call)), ...expected, pages: FIXED_PAGES + expected.reads * PAGES_PER_READ })
  const ids = seqsOf(DEEP, 10).map((seq) => formatId(String(seq), 0))
  await add('sum up a connection', administration.summary(DEEP), { rows: 1, reads: DEEP_MESSAGES })
  await add('known session', administration.liveSession(DEEP), { rows: 1, reads: 0, given: LIVE(DEEP, 0) })
  await add('a page of messages', administration.messages({ connectionId: DEEP, limit: 50 }), { rows: 51, reads: 51 })
  const cursor = Buffer.from(`["messages","${MESSAGES / 2}",""]`).toString('base64url')
  await add('another page', administration.messages({ connectionId: DEEP, limit: 50, cursor }), { rows: 51, reads: 51 })
  const old = { connectionId: DEEP, olderThanSeconds: 60 }
  await add('measure a purge', administration.measure(old), { rows: 1, reads: DEEP_MESSAGES })
  await add('purge', administration.purge({ ...old, upTo: String(MESSAGES) }), { rows: 1_000, reads: 2_000 })
  await add('purge of ids', administration.purge({ connectionId: DEEP, ids, upTo: String(MESSAGES) }), {
    rows: 10,
    reads: DEEP_MESSAGES + 10,
  })
  stop()
  return all
}

/** Statements as the service sends them, drizzle's too, on their way. */
function catchStatements() {
  const sent: Pick<Case, 'text' | 'values'>[] = []
  const stop = watchStatements((statement) => sent.push(statement as (typeof sent)[number]))
  const caught = async (call: Promise<unknown>, nth = 0) => {
    await call
    return sent.splice(0)[nth]!
  }
  return { caught, stop }
}

async function sessionCases(pool: pg.Pool, sessions: SessionDirectory): Promise<Case[]> {
  const { caught, stop } = catchStatements()
  const all: Case[] = []
  const add = async (
    title: string,
    call: Promise<unknown>,
    expected: { rows: number; reads?: number; given?: string; pages?: number; nth?: number },
  ) => all.push({ title, reads: 0, ...(await caught(call, expected.nth)), ...expected, pages: (expected.pages ?? 0) + FIXED_PAGES })

  const live = LIVE(DEEP, 0)
  const fleet = Array.from({ length: 500 }, (_, i) => ({ connectionId: `connection ${2_000 + i}`, epoch: 2_000 + i }))
  const own = `INSERT INTO instances VALUES ('${sessions.instanceId}', now() + interval '25 s');
    UPDATE live_sessions SET instance_id = '${sessions.instanceId}' WHERE epoch % 3 = 0`
  const dead = `${own}; UPDATE instances SET lease_until = now() - interval '2 days' WHERE instance_id = '${sessions.instanceId}'`
  for (const [title, given] of [
    ['', undefined],
    [' where another one is', live],
  ] as const)
    await add(`open a session${title}`, sessions.open({ connectionId: DEEP, sessionId: 's' }), { rows: 1, reads: 1, given })
  await add('close a session', sessions.close({ connectionId: DEEP, sessionId: 's' }), { rows: 1, given: live })
  await add('look for a session', sessions.isLive(DEEP), { rows: 1, given: live })
  await add('renew a lease', sessions.renew(), { rows: 1 })
  await add('close 500 sessions', sessions.closeMany(fleet), { rows: 500, pages: 500 * PAGES_PER_END })
  await add('close all sessions', sessions.closeAll(), { rows: OWN_SESSIONS, given: own, pages: OWN_SESSIONS * PAGES_PER_END })
  const search = { rows: NEWS, reads: NEWS, given: own, pages: 2 * OWN_SESSIONS * PAGES_PER_READ }
  await add('look for what waits', sessions.waiting(30_000), search)
  const some = Array.from({ length: 500 }, (_, i) => `connection ${1_001 + i}`)
  await add('look for what waits among 500 sessions', sessions.waiting(30_000, some), {
    rows: 3 * NEWS,
    reads: 3 * NEWS,
    pages: 2 * 500 * PAGES_PER_READ,
  })
  await add('sweep expired sessions', sessions.sweep(), { rows: SESSIONS_OVER, pages: SESSIONS_OVER * PAGES_PER_END })
  await add('see to the sessions of a crashed instance', sessions.sweep(), {
    rows: OWN_SESSIONS,
    nth: 1,
    given: `DELETE FROM instances; ${own}; UPDATE instances SET lease_until = now() - interval '1 s'`,
    pages: OWN_SESSIONS * PAGES_PER_END,
  })
  await add('sweep the sessions of dead instances', sessions.sweep(), {
    rows: OWN_SESSIONS,
    nth: 3,
    given: dead,
    pages: OWN_SESSIONS * PAGES_PER_READ,
  })
  await pool.query('TRUNCATE live_sessions, instances, push_outbox, push_reasons')
  stop()
  return all
}

/** A live session that began before anything arrived. Nothing up to `sinceSeq` is to be delivered in it. */
function LIVE(connectionId: string, sinceSeq: number): string {
  return `INSERT INTO live_sessions (connection_id, session_id, epoch, expires_at, since, since_seq)
    VALUES ('${connectionId}', 's', ${EPOCH}, now() + interval '1 minute', '1:1:', ${sinceSeq})`
}

/** All but the last ten messages of a queue, and many tallies of others. */
function TALLY(connectionId: string): string {
  return `INSERT INTO queue_tallies (connection_id, up_to_seq, messages, bytes, counted_at)
    SELECT CASE WHEN n = 0 THEN '${connectionId}' ELSE 'connection ' || n END, (SELECT min(seq) - 1 FROM (
      SELECT seq FROM queued_messages WHERE connection_id = '${connectionId}' ORDER BY seq DESC LIMIT 10) last), 1, 1, now() FROM generate_series(0, 999) n;
    INSERT INTO tallied_removals SELECT id, 1, 1 FROM queue_tallies, generate_series(1, 10)`
}

async function emptyAndVacuum(pool: pg.Pool): Promise<void> {
  await fill(pool, 50_000)
  for (const table of TABLES) {
    await pool.query(`DELETE FROM ${table} WHERE ctid <> (SELECT max(ctid) FROM ${table})`)
    // Not those of pushes: what they read then is in docs/decisions/0024.
    if (!table.startsWith('push_')) await pool.query({ ...UNHURRIED, text: `VACUUM ${table}` } as pg.QueryConfig)
    await pool.query(`DELETE FROM ${table}`)
  }
}

/** The messages of a queue lie as far from each other as those of the others came between. */
async function fill(pool: pg.Pool, messages = MESSAGES): Promise<void> {
  const text = `
    SET LOCAL statement_timeout = 0;

    INSERT INTO queued_messages (connection_id, seq, tag, recipient_dids, payload, payload_bytes, accepted_at, idempotency_key)
    SELECT CASE WHEN n <= 0 THEN 'expired ' || n % 50 WHEN n % 10 = 0 THEN '${DEEP}' ELSE 'connection ' || (n / 10 * 9 + n % 10) % 10000 END,
      n, 0, '{${DID}}', '{"protected":"e30","ciphertext":"' || repeat('x', 30) || '"}', 60,
      CASE WHEN n <= 0 THEN now() - interval '31 days' ELSE now() - interval '2 hours' END + n * interval '5 ms',
      CASE WHEN n % 5 = 0 THEN 'key ' || n END
    FROM generate_series(${1 - EXPIRED}, ${messages}) n;

    SELECT setval('queued_messages_seq_seq', ${MESSAGES});

    INSERT INTO push_tokens SELECT 'connection ' || n, 'hash ' || n, 'fcm', '', 'token ' || n, 'ending', true FROM generate_series(0, 9999) n;

    INSERT INTO push_outbox (token_hash, type, project, token, state, next_at, owed_since)
    SELECT 'hash ' || n, 'fcm', '', 'token ' || n, CASE WHEN n % 2 = 0 THEN 'resting' ELSE 'owed' END,
      now() + CASE WHEN n < 3000 THEN -1 ELSE 1 END * interval '1 hour', now()
    FROM generate_series(0, 9999) n;

    INSERT INTO push_reasons (token_hash, connection_id, from_seq, reminds, despite_live, not_before, to_seq)
    SELECT 'hash ' || n, 'connection ' || n, 0, true, false, now(), 1 FROM generate_series(0, 9999) n;

    INSERT INTO removed_keys SELECT 'connection ' || n % 10000, 'removed key ' || n, n, 0, 0, now() - interval '10 minutes' + n * interval '6 ms'
    FROM generate_series(1, 100000) n;

    INSERT INTO instances SELECT gen_random_uuid(), now() + (n - 2) * interval '1 minute' FROM generate_series(1, 5) n;

    INSERT INTO live_sessions (connection_id, session_id, epoch, instance_id, expires_at, since, since_seq)
    SELECT 'connection ' || n, 's', n, CASE WHEN n % 3 > 0 THEN (array(SELECT instance_id FROM instances))[n % 5 + 1] END,
      CASE WHEN n % 3 = 0 THEN now() + (n - 2000) * interval '1 minute' END,
      CASE WHEN n <= 1000 + 3 * ${NEWS} THEN '1:1:' ELSE pg_current_snapshot() END, CASE WHEN n <= 1000 + 3 * ${NEWS} THEN 0 ELSE ${MESSAGES} END
    FROM generate_series(1001, 1000 + 3 * ${OWN_SESSIONS}) n`
  await pool.query({ ...UNHURRIED, text } as pg.QueryConfig)
}

/** The first seqs of a queue, as fill() gave them. */
function seqsOf(queue: string, count: number): number[] {
  const seqs: number[] = []
  for (let n = 1; seqs.length < count; n++) {
    const connectionId = n % 10 === 0 ? DEEP : `connection ${(Math.floor(n / 10) * 9 + (n % 10)) % 10_000}`
    if (connectionId === queue) seqs.push(n)
  }
  return seqs
}

interface Connection {
  /** Runs the statement as one that was prepared, and undoes it. */
  explain: (text: string, values: Case['values'], given?: string) => Promise<{ plan: Node; isCompiled: boolean }>
  release: () => void
}

const UNHURRIED = { query_timeout: 60_000 } // not as the service is: here whole queues are removed, and every row is timed

async function connect(pool: pg.Pool, planCacheMode: string): Promise<Connection> {
  const client = await pool.connect()
  await client.query(`SET plan_cache_mode = ${planCacheMode}; SET statement_timeout = 0`)
  const names = new Map<string, string>()
  return {
    release: () => client.release(true),
    async explain(text, values, given = '') {
      let name = names.get(text)
      if (!name) {
        names.set(text, (name = `statement_${names.size}`))
        await client.query(`PREPARE ${name} AS ${text}`)
      }
      const list = values.length > 0 ? `(${values.map(literal).join(', ')})` : ''
      await client.query(`BEGIN; ${given}`)
      const explain = `EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE ${name}${list}`
      const { rows } = await client.query<{ 'QUERY PLAN': [{ Plan: Node; JIT?: object }] }>({
        ...UNHURRIED,
        text: explain,
      } as pg.QueryConfig)
      await client.query('ROLLBACK')
      const { Plan: plan, JIT: jit } = rows[0]!['QUERY PLAN'][0]
      return { plan, isCompiled: jit !== undefined }
    },
  }
}

type Value = string | number | boolean | null | undefined

function literal(value: Value | Value[]): string {
  if (value === null || value === undefined) return 'NULL'
  if (!Array.isArray(value)) return pg.escapeLiteral(String(value))
  return pg.escapeLiteral(`{${value.map((one) => (one === null ? 'NULL' : JSON.stringify(String(one)))).join(',')}}`)
}

type Asserts = Pick<typeof t, 'same'>

/** Of EXPLAIN's JSON what is looked at here. */
interface Node {
  'Node Type': string
  'Parent Relationship'?: string
  'Relation Name'?: string
  'Index Name'?: string
  'Index Cond'?: string
  Filter?: string
  'Actual Rows': number
  'Actual Loops': number
  'Actual Total Time': number
  'Rows Removed by Filter'?: number
  'Rows Removed by Index Recheck'?: number
  'Shared Hit Blocks': number
  'Shared Read Blocks': number
  Plans?: Node[]
}

function measure(plan: Node): { rows: number; reads: number; pages: number; faults: string[] } {
  const nodes = nodesOf(plan)
  const scans = nodes.filter((node) => /Scan/.test(node['Node Type']))
  const ofQueue = scans.filter((node) => /^queued_messages/.test(node['Relation Name'] ?? node['Index Name'] ?? ''))
  // Expiry looks at all queues, and only there by time.
  const isKeyed = (node: Node) =>
    node['Node Type'] === 'Bitmap Heap Scan' || // the index scan below it is looked at
    /\bconnection_id = /.test(node['Index Cond'] ?? '') ||
    (node['Index Name'] === 'queued_messages_accepted_at' && /^\(accepted_at <= /.test(node['Index Cond'] ?? ''))
  // A statement that changes rows without RETURNING gives none.
  const changed = plan['Node Type'] === 'ModifyTable' ? plan.Plans?.find((node) => node['Parent Relationship'] === 'Outer') : undefined
  return {
    rows: (changed ?? plan)['Actual Rows'],
    reads: ofQueue.filter((node) => node['Node Type'] !== 'Bitmap Index Scan').reduce((sum, node) => sum + rowsRead(node), 0),
    // Not always the first node's: a CTE that changes rows and that nobody reads runs after it.
    pages: Math.max(...nodes.map((node) => node['Shared Hit Blocks'] + node['Shared Read Blocks'])),
    faults: [
      ...scans
        .filter((node) => node['Node Type'] === 'Seq Scan' && node['Relation Name'] !== 'instances') // a handful
        .map((node) => `a scan of the whole table ${node['Relation Name']}`),
      ...ofQueue.filter((node) => !isKeyed(node)).map((node) => `a scan of all queues by ${node['Index Name']}`),
    ],
  }
}

/** Of a node that ran often EXPLAIN gives the average, rounded: a row now and then is none. The pages tell. */
function rowsRead(node: Node): number {
  const each = node['Actual Rows'] + (node['Rows Removed by Filter'] ?? 0) + (node['Rows Removed by Index Recheck'] ?? 0)
  return each * node['Actual Loops']
}

function nodesOf(plan: Node): Node[] {
  return [plan, ...(plan.Plans ?? []).flatMap(nodesOf)]
}

function outline(node: Node, depth = 0): string[] {
  const { 'Node Type': type, 'Relation Name': relation = '', 'Index Name': index = '', 'Index Cond': condition = '', Filter: filter } = node
  const line = `${type} ${relation} ${index} ${condition} ${filter ? `filter ${filter}` : ''}: ${node['Actual Rows']} rows x ${node['Actual Loops']}`
  return [`${'  '.repeat(depth)}${line.replace(/ +/g, ' ')}`, ...(node.Plans ?? []).flatMap((child) => outline(child, depth + 1))]
}
