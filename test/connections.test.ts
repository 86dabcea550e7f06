import pg from 'pg'
import t, { type Test } from 'tap'
import { createRun } from '../plugins/storage/connections.js'
import type { Statement } from '../plugins/storage/query.js'
import { testDatabase } from './helpers/service.js'
import { until } from './helpers/until.js'

const KEPT = 2
const WHO = { name: 'who', text: 'SELECT pg_backend_pid()' }
const SLEEP = { name: 'sleep', text: 'SELECT pg_sleep(10)' }

async function openFixture(t: Test, max = 5) {
  const pool = new pg.Pool({ connectionString: await testDatabase(t), max })
  const lost: Error[] = []
  pool.on('error', (error) => lost.push(error))
  t.teardown(() => pool.ended || pool.end())
  const acquired = { count: 0 }
  pool.on('acquire', () => acquired.count++)
  const query = createRun(pool)
  const run = (statement: Statement, values: unknown[] = []) => query(statement, values)
  const pidOf = async () => (await run(WHO))[0]![0] as number
  return { pool, lost, acquired, run, pidOf, busy: () => pool.totalCount - pool.idleCount }
}

t.test('statements that follow each other are lent one connection once', async (t) => {
  const { acquired, pidOf, busy } = await openFixture(t)
  const pids = new Set<number>()
  for (let i = 0; i < 20; i++) pids.add(await pidOf())
  t.equal(pids.size, 1)
  t.equal(acquired.count, 1)
  await until(() => busy() === 0)
  t.equal(await pidOf(), [...pids][0], 'the pool had it, when nobody used it any more')
})

t.test('no more are kept than batches are under way at once, and one is left to others', async (t) => {
  const { pidOf, busy } = await openFixture(t)
  await Promise.all(Array.from({ length: 5 }, pidOf))
  t.equal(busy(), KEPT)

  const small = await openFixture(t, 2)
  await Promise.all([small.pidOf(), small.pidOf()])
  t.equal(small.busy(), 1)
})

t.test('whoever waits for the pool comes before the next statement', async (t) => {
  const { pool, pidOf } = await openFixture(t, 2)
  const busy = await pool.connect()
  const done: string[] = []
  const first = pidOf()
  const other = pool.query('SELECT 1').then(() => done.push('other'))
  await first.then(pidOf).then(() => done.push('next'))
  await other
  busy.release()
  t.same(done, ['other', 'next'])
})

t.test('a connection whose statement failed is given up', async (t) => {
  const { pool, run, pidOf } = await openFixture(t)
  const first = await pidOf()
  await t.rejects(run({ name: 'fail', text: 'SELECT 1 / 0' }), { code: '22012' })
  t.equal(pool.totalCount, 0)
  t.not(await pidOf(), first)
})

t.test('a connection that is lost, in use or kept, does no harm', async (t) => {
  const { pool, lost, run, pidOf } = await openFixture(t)
  const running = run(SLEEP)
  const kept = await pidOf()
  const killer = new pg.Client({ connectionString: pool.options.connectionString! })
  await killer.connect()
  t.teardown(() => killer.end())
  const rejected = t.rejects(running, { code: '57P01' })
  await killer.query(
    'SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()',
  )
  await rejected
  await until(() => pool.totalCount === 0)
  t.not(await pidOf(), kept)
  t.match(lost, [{ code: '57P01' }], 'of the kept one the pool tells, as of its own; of the other one its statement told')
})

t.test('a pool that ends waits for what is kept, and not long', async (t) => {
  const { pool, pidOf } = await openFixture(t)
  await pidOf()
  const since = performance.now()
  await pool.end()
  t.ok(performance.now() - since < 1_000)
  await t.rejects(pidOf(), /after calling end/)
})
