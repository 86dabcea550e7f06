import { execFile } from 'node:child_process'
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { gzipSync } from 'node:zlib'
import { build } from 'esbuild'
import t from 'tap'
import { newConnectionId, startService } from '../helpers/service.js'

/** The client as it is published: packed, installed in a project of nobody's, and used there. */
const root = resolve(fileURLToPath(import.meta.url), '../../..')
const clientFolder = join(root, 'packages/client')
const readme = readFileSync(join(clientFolder, 'README.md'), 'utf8')
const project = mkdtempSync(join(tmpdir(), 'mpr-project-'))
t.teardown(() => rmSync(project, { recursive: true, force: true }))
t.setTimeout(120_000)

/** tap hooks itself into every node below a test, by NODE_OPTIONS; these are to run as they do outside. */
async function run(command: string, args: string[], cwd = project, more: Record<string, string> = {}): Promise<string> {
  const environment = { ...process.env, ...more }
  delete environment.NODE_OPTIONS
  try {
    return (await promisify(execFile)(command, args, { cwd, env: environment })).stdout
  } catch (error) {
    const { stdout, stderr } = error as { stdout: string; stderr: string }
    throw new Error(`${command} ${args.join(' ')}: ${stdout}${stderr}`, { cause: error })
  }
}

const write = (file: string, text: string) => writeFileSync(join(project, file), text)
const manifest = JSON.parse(readFileSync(join(clientFolder, 'package.json'), 'utf8'))

await run('npm', ['pack', '--silent', '--pack-destination', project], clientFolder)
const [tarball] = readdirSync(project).filter((file) => file.endsWith('.tgz'))
write('package.json', JSON.stringify({ name: 'empty', private: true }))
await run('npm', ['install', '--silent', '--no-audit', '--no-fund', '--prefer-offline', `./${tarball}`])

t.test('it brings ws and nothing else', async (t) => {
  t.same(
    readdirSync(join(project, 'node_modules'))
      .filter((name) => !name.startsWith('.'))
      .sort(),
    ['message-pickup-repository-client', 'ws'],
  )
  const files = readdirSync(join(project, 'node_modules/message-pickup-repository-client/dist'))
  t.ok(files.includes('credo.cjs'))
  t.ok(readdirSync(join(project, 'node_modules/message-pickup-repository-client')).includes('README.md'))
})

const USE = `
const bad = createClient({ url: 'ws://127.0.0.1:1', callTimeoutMs: 50 })
bad.getLiveSession({ connectionId: 'c' }).catch((error) => {
  console.log(error instanceof MessagePickupError, error instanceof OfCredo, error.code, typeof queue6, typeof queue5)
  return bad.close()
})`
const EXPECTED = 'true true timeout function function\n'

t.test('it is loaded by import, and all entries share one MessagePickupError', async (t) => {
  write(
    'esm.mjs',
    `import { createClient, MessagePickupError } from 'message-pickup-repository-client'
import { createMessagePickupQueue as queue6, MessagePickupError as OfCredo } from 'message-pickup-repository-client/credo'
import { createMessagePickupQueue as queue5 } from 'message-pickup-repository-client/credo-0.5'
${USE}`,
  )
  t.equal(await run(process.execPath, ['esm.mjs']), EXPECTED)
})

t.test('it is loaded by require', async (t) => {
  write(
    'cjs.cjs',
    `const { createClient, MessagePickupError } = require('message-pickup-repository-client')
const { createMessagePickupQueue: queue6, MessagePickupError: OfCredo } = require('message-pickup-repository-client/credo')
const { createMessagePickupQueue: queue5 } = require('message-pickup-repository-client/credo-0.5')
${USE}`,
  )
  t.equal(await run(process.execPath, ['cjs.cjs']), EXPECTED)
})

const TYPED = `
import { createClient, MessagePickupError, type MessagePickupClient, type MethodParams, type QueuedMessage } from 'message-pickup-repository-client'
import { createMessagePickupQueue } from 'message-pickup-repository-client/credo'
import { createMessagePickupQueue as createQueue05 } from 'message-pickup-repository-client/credo-0.5'

export async function use(client: MessagePickupClient = createClient({ url: ['ws://a/ws', 'ws://b/ws'], apiKey: 'key' })) {
  const params: MethodParams<'addMessage'> = { connectionId: 'c', recipientDids: ['did:key:z6Mk'], payload: { ciphertext: 'x' } }
  const id: string = await client.addMessage(params)
  const messages: QueuedMessage[] = await client.takeFromQueue({ connectionId: 'c', limit: 1, deleteMessages: true })
  const live: true | null = await client.getLiveSession({ connectionId: 'c' })
  const nothing: null = await client.removeMessages({ connectionId: 'c', messageIds: messages.map((message) => message.id) })
  client.on('messagesReceived', ({ connectionId, messages }) => [connectionId.length, messages[0]?.receivedAt.length])
  const queue = createMessagePickupQueue({ url: 'ws://a/ws' })
  queue.setConnectionInfo(async () => ({ fcmNotificationToken: 'token', maxReceiveBytes: 1 }))
  await createQueue05({ url: 'ws://a/ws' }).removeMessages({ connectionId: 'c', messageIds: [id] })
  // @ts-expect-error a parameter that is missing is found
  await client.addMessage({ connectionId: 'c', payload: {} })
  // @ts-expect-error an event that does not exist is found
  client.on('somethingElse', () => {})
  return [live, nothing, new MessagePickupError('closed', 'x').isOutcomeUnknown]
}
`

t.test('it compiles in strict TypeScript without the service, its libraries, Credo, or the types of Node', async (t) => {
  write('typed.mts', TYPED)
  write('typed.cts', TYPED)
  const tsc = join(root, 'node_modules/typescript/bin/tsc')
  const strict = [
    '--strict',
    '--exactOptionalPropertyTypes',
    '--noEmit',
    '--target',
    'es2022',
    '--lib',
    'es2022',
    '--skipLibCheck',
    'false',
  ]
  await run(process.execPath, [tsc, ...strict, '--module', 'nodenext', 'typed.mts', 'typed.cts'])
  await run(process.execPath, [tsc, ...strict, '--module', 'esnext', '--moduleResolution', 'bundler', 'typed.mts'])
  t.pass()
})

t.test('a bundler for browsers takes neither ws nor anything of Node', async (t) => {
  write('browser.mjs', "export { createClient } from 'message-pickup-repository-client'\n")
  const { metafile } = await build({
    entryPoints: [join(project, 'browser.mjs')],
    bundle: true,
    platform: 'browser',
    format: 'esm',
    write: false,
    metafile: true,
  })
  const inputs = Object.keys(metafile.inputs)
  t.ok(inputs.some((file) => file.endsWith('index.browser.js')))
  t.notOk(inputs.some((file) => file.includes('node_modules/ws')))
})

t.test('in a browser it speaks by the global WebSocket, and refuses a key there', async (t) => {
  const service = await startService(t)
  write(
    'global.mjs',
    `import { WebSocket } from 'ws'
globalThis.WebSocket = WebSocket
const { createClient } = await import('./node_modules/message-pickup-repository-client/dist/index.browser.js')
const url = process.env.MPR_URL
const client = createClient({ url })
console.log(await client.getAvailableMessageCount({ connectionId: 'nobody' }))
await client.close()
await createClient({ url, apiKey: 'key' }).connect().catch(({ message }) => console.log(message))
`,
  )
  const output = await run(process.execPath, ['global.mjs'], project, { MPR_URL: `${service.url.replace('http', 'ws')}/ws` })
  t.match(output, /^0\napiKey needs Node/)
})

t.test('the example of the README runs as it is and prints what the README says', async (t) => {
  const service = await startService(t)
  const [, script, expected] = /<!-- example: mediator -->\n```js\n([\s\S]*?)```\n\n```text\n([\s\S]*?)```/.exec(readme)!
  write('mediator.mjs', script!)
  const environment = { MPR_URL: `${service.url.replace('http', 'ws')}/ws`, CONNECTION_ID: newConnectionId() }
  t.equal(await run(process.execPath, ['mediator.mjs'], project, environment), expected)
})

t.test('it is as small as the README says, and below 10 KB', async (t) => {
  const said = [...readme.matchAll(/^\| `\.(\/credo\S*)?` \| ([\d.]+) KB \|$/gm)]
  t.equal(said.length, 3)
  for (const [, entry = '/index', kilobytes] of said) {
    const { outputFiles } = await build({
      entryPoints: [join(project, `node_modules/message-pickup-repository-client/dist${entry}.js`)],
      bundle: true,
      minify: true,
      format: 'esm',
      external: ['ws'],
      write: false,
    })
    const measured = gzipSync(outputFiles[0]!.contents).length / 1024
    t.ok(Math.abs(measured - Number(kilobytes)) < 0.3, `${entry}: ${measured.toFixed(1)} KB, README says ${kilobytes}`)
    t.ok(measured < 10)
  }
})

t.test('every file that its documents link to exists', async (t) => {
  for (const file of ['packages/client/README.md', 'docs/integrate-credo.md', 'docs/protocol.md']) {
    for (const [, path] of readFileSync(join(root, file), 'utf8').matchAll(/\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)/g)) {
      t.ok(existsSync(resolve(root, file, '..', path!)), `${file}: ${path}`)
    }
  }
  t.equal(manifest.name, 'message-pickup-repository-client')
})
