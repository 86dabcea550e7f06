import { execFile } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { createServer, type AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import t from 'tap'
import { comparable, example } from './helpers/example.js'
import { startService, testDatabase } from './helpers/service.js'

const readme = readFileSync(new URL('../README.md', import.meta.url), 'utf8')
const service = await startService(t)

for (const name of ['curl', 'websocket']) {
  t.test(`the ${name} example of the README prints what the README says`, async (t) => {
    const { script, expected } = example('README.md', name)
    const { stdout } = await promisify(execFile)('bash', ['-c', script.replaceAll('127.0.0.1:3000', service.url.replace('http://', ''))])
    t.same(comparable(stdout), comparable(expected))
  })
}

t.test('the example of keys in the README starts a service that lets in who has the secret', async (t) => {
  const { script, expected } = example('README.md', 'keys')
  const folder = mkdtempSync(join(tmpdir(), 'mpr-readme-'))
  t.teardown(() => rmSync(folder, { recursive: true }))
  const probe = createServer().listen(0, '127.0.0.1')
  await once(probe, 'listening')
  const { port } = probe.address() as AddressInfo
  probe.close()
  const here = script
    .replaceAll('3001', String(port))
    .replaceAll('keys.txt', join(folder, 'keys.txt'))
    .replaceAll('service.log', join(folder, 'service.log'))
    .replace('npm start', 'node --import tsx server.ts') // without building
  const env = { ...process.env, NODE_OPTIONS: '', DATABASE_URL: await testDatabase(t) }
  const { stdout } = await promisify(execFile)('bash', ['-c', `${here}\nwait`], { env })
  t.equal(stdout, expected)
})

t.test('every file that the README links to exists', async (t) => {
  for (const [, path] of readme.matchAll(/\]\((?!https?:)([^)#]+)\)/g)) {
    t.ok(existsSync(new URL(`../${path}`, import.meta.url)), path!)
  }
})
