import { spawn } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { startTestPostgres } from './helpers/postgres.js'

/** `npm test [files]`: brings up what the tests stand on, runs them, and ends with a line `N passed, N failed`. */
const postgres = await startTestPostgres()
const folder = mkdtempSync(join(tmpdir(), 'mpr-tap-'))
const results = join(folder, 'results.tap')
const tap = spawn('npx', ['tap', 'run', '--reporter=terse', `--output-file=${results}`, ...process.argv.slice(2)], {
  stdio: 'inherit',
  env: { ...process.env, TEST_DATABASE_URL: postgres.url },
})
const code = await new Promise<number>((resolve) => tap.on('close', (status) => resolve(status ?? 1)))
await postgres.stop()

// The last line of that form counts the assertions of all files: "# { total: 12, pass: 11, fail: 1 }"
const totals =
  readFileSync(results, 'utf8')
    .match(/^# \{ total: .*\}$/gm)
    ?.at(-1) ?? ''
rmSync(folder, { recursive: true })
const count = (what: string) => Number(new RegExp(`${what}: (\\d+)`).exec(totals)?.[1] ?? 0)
const passed = count('pass')
const failed = count('fail') || (code === 0 ? 0 : 1)
console.log(`\n${passed} passed, ${failed} failed`)
process.exitCode = code === 0 && passed > 0 ? 0 : 1
