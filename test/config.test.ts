import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { createInterface } from 'node:readline'
import t from 'tap'
import { ConfigError, describeConfig, readConfig } from '../src/config.js'

function faults(environment: Record<string, string>): string {
  try {
    readConfig(environment)
  } catch (error) {
    if (error instanceof ConfigError) return error.message
    throw error
  }
  return ''
}

t.test('nothing is needed: the defaults are a working configuration on 127.0.0.1', async (t) => {
  const config = readConfig({})
  t.match(config, { HOST: '127.0.0.1', PORT: 3000, DATA_DIR: './data', LEASE_MS: 30_000, QUOTA_MESSAGES: 10_000 })
  t.equal(config.DATABASE_URL, undefined)
  t.equal(config.limits.maxPayloadBytes, 5 * 1024 * 1024)
})

t.test('an empty variable counts as not set', async (t) => {
  t.match(readConfig({ PORT: '', DATABASE_URL: '' }), { PORT: 3000 })
})

t.test('all faults are reported at once, each with its value and what to do', async (t) => {
  const text = faults({ PORT: '70000', LEASE_MS: 'soon', LOG_LEVEL: 'loud', MIGRATE_ON_BOOT: 'yes', QUOTA_MESSAGES: '-1' })
  t.match(text, /has 5 fault/)
  t.match(text, /PORT must be a whole number from 0 to 65535; it is "70000"\. Unset PORT for the default, 3000\./)
  t.match(text, /LEASE_MS must be a whole number .* it is "soon"/)
  t.match(text, /LOG_LEVEL must be one of trace, debug, info/)
  t.match(text, /MIGRATE_ON_BOOT must be true or false/)
  t.match(text, /QUOTA_MESSAGES must be a whole number of at least 0/)
})

t.test('a fault in a setting with a password does not show its value', async (t) => {
  const text = faults({ DATABASE_URL: 'mysql://root:hunter2@db/x' })
  t.match(text, /DATABASE_URL must be a URL like postgres:/)
  t.notMatch(text, /hunter2/)
})

t.test('impossible combinations are refused with the sentence that mends them', async (t) => {
  t.match(faults({ MAX_PAYLOAD_BYTES: '10000', MAX_FRAME_BYTES: '5000' }), /Raise MAX_FRAME_BYTES/)
  t.match(faults({ QUOTA_BYTES: '5000' }), /Raise QUOTA_BYTES/)
  t.equal(faults({ QUOTA_BYTES: '0' }), '', '0 is no quota')
})

t.test('--help prints the table of settings, and a bad configuration ends with code 1 and a sentence', async (t) => {
  const run = (args: string[], environment: Record<string, string>) =>
    spawnSync(process.execPath, ['--import', 'tsx', 'server.ts', ...args], {
      encoding: 'utf8',
      env: { PATH: process.env.PATH!, ...environment },
    })
  const help = run(['--help'], {})
  t.equal(help.status, 0)
  t.match(help.stdout, describeConfig('text'))
  const bad = run([], { PORT: 'x' })
  t.equal(bad.status, 1)
  t.match(bad.stderr, /PORT must be/)
  t.notMatch(bad.stderr, /at .*\.ts:\d+/, 'no stack')
})

t.test('a signal while the service still waits for its database ends it at once', async (t) => {
  const child = spawn('sh', ['-c', 'unset NODE_OPTIONS; exec "$0" --import tsx server.ts', process.execPath], {
    env: { PATH: process.env.PATH, DATABASE_URL: 'postgres://nobody:x@127.0.0.1:1/none' },
  })
  const log = createInterface({ input: child.stdout })
  for await (const line of log) if (line.includes('does not answer yet')) break
  child.stdout.resume()
  const closed = once(child, 'exit')
  const asked = performance.now()
  child.kill('SIGTERM')
  t.same(await closed, [0, null])
  t.ok(performance.now() - asked < 3_000)
})
