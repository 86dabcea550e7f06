import { spawn } from 'node:child_process'
import { createInterface } from 'node:readline'
import { startTestPostgres } from './helpers/postgres.js'
import { redisBinary } from './helpers/redis.js'

/**
 * `npm test [files]`: brings up what the tests stand on, runs them, and ends with a line `N passed, N failed`.
 * Shown are the files, what failed and what was skipped, with its reason; `npm test -- --all` shows every assertion.
 */
const all = process.argv.includes('--all')
const files = process.argv.slice(2).filter((argument) => argument !== '--all')

if (!(process.env.SKIP_TESTS ?? '').split(',').includes('redis')) redisBinary() // once, and not by each file at the same time
const postgres = await startTestPostgres()
const tap = spawn('npx', ['tap', 'run', '--reporter=tap', ...files], {
  stdio: ['ignore', 'pipe', 'inherit'],
  env: { ...process.env, TEST_DATABASE_URL: postgres.url },
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

const count = (what: string) => Number(new RegExp(`${what}: (\\d+)`).exec(totals)?.[1] ?? 0)
const [passed, failed, skipped] = [count('pass'), count('fail') || (code === 0 ? 0 : 1), count('skip')]
console.log(`\n${passed} passed, ${failed} failed${skipped > 0 ? `, ${skipped} skipped` : ''}`)
process.exitCode = code === 0 && passed > 0 ? 0 : 1
