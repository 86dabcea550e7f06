import { spawn } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { markdownTable, readRows, writeDocument } from './faults/report.js'
import { startTestPostgres } from './helpers/postgres.js'
import { SEED } from './helpers/random.js'
import { redisBinary } from './helpers/redis.js'

/**
 * `npm test [files]`: brings up what the tests stand on, runs them, and ends with a line `N passed, N failed`.
 * Shown are the files, what failed and what was skipped, with its reason; `npm test -- --all` shows every assertion. With `--table`
 * the results of the fault scenarios are shown as a table, with `--document` it is written to docs/faults.md. Runs that are given one
 * folder as FAULTS_RESULTS add to one table.
 */
const OWN = ['--all', '--table', '--document']
const [all, table, document] = OWN.map((option) => process.argv.includes(option))
const files = process.argv.slice(2).filter((argument) => !OWN.includes(argument))
const results = process.env.FAULTS_RESULTS ?? mkdtempSync(join(tmpdir(), 'mpr-results-'))

if (!(process.env.SKIP_TESTS ?? '').split(',').includes('redis')) redisBinary() // once, and not by each file at the same time
const postgres = await startTestPostgres()
const tap = spawn('npx', ['tap', 'run', '--reporter=tap', ...files], {
  stdio: ['ignore', 'pipe', 'inherit'],
  env: { ...process.env, TEST_DATABASE_URL: postgres.url, FAULTS_SEED: String(SEED), FAULTS_RESULTS: results },
})

let totals = ''
let showUntil: string | undefined // within what explains a failure
for await (const line of createInterface({ input: tap.stdout })) {
  if (line.startsWith('# { total:')) totals = line
  const indent = /^ */.exec(line)![0]
  if (/^ *not ok|^ok|# SKIP|# TODO/.test(line) || showUntil !== undefined || all) console.log(line)
  if (/^ *not ok/.test(line)) showUntil = `${indent}  ...`
  else if (line === showUntil || /^ *ok/.test(line)) showUntil = undefined
}
const code = tap.exitCode ?? (await new Promise<number | null>((resolve) => tap.on('close', resolve)))
await postgres.stop()

const rows = readRows(results)
if (!process.env.FAULTS_RESULTS) rmSync(results, { recursive: true })
if (table || document) console.log(`\n${markdownTable(rows)}`)
if (document) writeDocument(rows, SEED)
if (rows.length > 0) console.log(`\nFAULTS_SEED=${SEED} draws the same at random`)

const count = (what: string) => Number(new RegExp(`${what}: (\\d+)`).exec(totals)?.[1] ?? 0)
const [passed, failed, skipped] = [count('pass'), count('fail') || (code === 0 ? 0 : 1), count('skip')]
console.log(`\n${passed} passed, ${failed} failed${skipped > 0 ? `, ${skipped} skipped` : ''}`)
process.exitCode = code === 0 && passed > 0 ? 0 : 1
