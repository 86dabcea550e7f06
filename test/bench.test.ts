import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import t from 'tap'
import { createLedger, noFaults } from '../bench/ledger.js'

/** Two messages of one connection, added and answered. */
function filledLedger() {
  const ledger = createLedger(1)
  for (const id of ['1-a', '2-a']) ledger.answered(0, ledger.sent(0), id)
  return ledger
}

t.test('the checker finds nothing where everything came once and in order', async (t) => {
  const ledger = filledLedger()
  t.ok(ledger.came(0, 0, '1-a', true))
  t.ok(ledger.came(0, 1, '2-a', true))
  t.same(ledger.faults(), noFaults())
})

t.test('the checker finds a lost message', async (t) => {
  const ledger = filledLedger()
  ledger.came(0, 0, '1-a', true)
  t.equal(ledger.missing(0), 1)
  t.same(ledger.faults(), { ...noFaults(), lost: 1 })
})

t.test('the checker finds a repeated message', async (t) => {
  const ledger = filledLedger()
  for (const [n, id] of [
    [0, '1-a'],
    [0, '1-a'],
    [1, '2-a'],
  ] as const)
    ledger.came(0, n, id, true)
  t.same(ledger.faults(), { ...noFaults(), repeated: 1 })
})

t.test('the checker finds messages that are out of order', async (t) => {
  const ledger = filledLedger()
  ledger.came(0, 1, '2-a', true)
  ledger.came(0, 0, '1-a', true)
  t.same(ledger.faults(), { ...noFaults(), outOfOrder: 1 })
})

t.test('the checker finds a ghost: a message that nobody added, of this connection or another, or under another id', async (t) => {
  const ledger = filledLedger()
  ledger.came(0, 2, '3-a', true)
  ledger.came(7, 0, '1-a', true)
  ledger.came(0, 0, '9-a', true)
  ledger.came(0, NaN, '1-a', true)
  t.equal(ledger.faults().ghost, 4)

  const early = createLedger(1)
  const n = early.sent(0)
  early.came(0, n, '9-a', true)
  early.answered(0, n, '1-a')
  t.same(early.faults(), { ...noFaults(), ghost: 1 }, 'also when it came before the answer to its add')
})

t.test('the checker finds a payload that was altered', async (t) => {
  const ledger = filledLedger()
  ledger.came(0, 0, '1-a', true)
  ledger.came(0, 1, '2-a', false)
  t.same(ledger.faults(), { ...noFaults(), altered: 1 })
})

t.test('an add that was answered with an error may come or not', async (t) => {
  const ledger = createLedger(1)
  ledger.refused(0, ledger.sent(0))
  t.same(ledger.faults(), noFaults())
  ledger.came(0, 0, '1-a', true)
  t.same(ledger.faults(), noFaults())
})

t.test('every benchmark runs, and none of its messages is lost, repeated, altered, out of order or a ghost', async (t) => {
  // tap hooks itself into every node below a test, by NODE_OPTIONS; what is started here is to run as it does outside.
  const { stdout } = await promisify(execFile)('npx', ['tsx', 'bench/run.ts', '--smoke', '--json'], {
    env: { ...process.env, NODE_OPTIONS: '' },
    maxBuffer: 10 * 1024 * 1024,
  })
  const { rows } = JSON.parse(stdout.trim().split('\n').at(-1)!) as { rows: Record<string, unknown[]> }
  for (const row of [
    'ping',
    'floor',
    'bare',
    'add',
    'drain',
    'rate',
    'day',
    'cross',
    'two',
    'idle',
    'storm',
    'depth here 100',
    'big 1 MiB day',
  ])
    t.equal(rows[row]?.length, 1, row)
})
