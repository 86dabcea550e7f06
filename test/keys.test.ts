import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { writeFileSync } from 'node:fs'
import t from 'tap'
import { findKey, isAllowedOrigin, isKnownHost, isLoopback, parseApiKeys } from '../src/access.js'
import { readConfig } from '../src/config.js'
import { createRateLimit } from '../src/rate-limit.js'
import { basic, bearer, secret, temporaryFile } from './helpers/keys.js'
import { startServer } from './helpers/process.js'
import { connect, testDatabase } from './helpers/service.js'

function faults(environment: Record<string, string>): string {
  try {
    readConfig(environment)
    return ''
  } catch (error) {
    return (error as Error).message
  }
}

t.test('keys are read with their names and scopes, and separated by spaces, commas or lines', async (t) => {
  const text = `# comment: with:colons\none:mediator:${secret('one')}, two:admin+mediator:${secret('two')}\n  # three\n\nthree:admin:sha256=${'ab'.repeat(32)}`
  const { keys, faults } = parseApiKeys(text)
  t.same(faults, [])
  t.same(
    keys.map(({ name, scopes }) => [name, ...scopes]),
    [
      ['one', 'mediator'],
      ['two', 'admin', 'mediator'],
      ['three', 'admin'],
    ],
  )
  t.notMatch(JSON.stringify(keys), secret('one'), 'only digests are kept')
})

t.test('a key that is not understood is named without its secret', async (t) => {
  const cases: [string, RegExp][] = [
    ['hunter2hunter2hunter2hunter2', /key 1 is not of the form name:scope:secret/],
    ['a:mediator:hunter2:hunter2hunter2', /key 1 is not of the form/],
    ['hunter2/:mediator:hunter2hunter2hunter2', /key 1 has a name/],
    ['a:root:hunter2hunter2hunter2', /"a".*other scopes than mediator, admin/],
    ['a::hunter2hunter2hunter2', /"a".*other scopes/],
    ['a:mediator:hunter2', /"a".*less than 20 characters.*openssl rand/],
    ['a:mediator:hunter2hunter2/hunter2hunter2', /"a".*other characters/],
    ['a:mediator:sha256=hunter2', /"a".*64 hex digits/],
  ]
  for (const [text, expected] of cases) {
    const { keys, faults } = parseApiKeys(text)
    t.same(keys, [])
    t.match(faults.join(), expected)
    t.notMatch(faults.join(), /hunter2/)
  }
})

t.test('a key is found by Bearer or Basic with its name, and by nothing else', async (t) => {
  const { keys } = parseApiKeys(`a:mediator:${secret('a')} b:admin:sha256=${createHash('sha256').update(secret('b')).digest('hex')}`)
  const found = (authorization: string | undefined) => findKey(keys, authorization)?.name
  t.equal(found(bearer('a').authorization), 'a')
  t.equal(found(bearer('b').authorization), 'b', 'of which only the digest is known')
  t.equal(found(`bearer  ${secret('a')} `), 'a')
  t.equal(found(basic('a').authorization), 'a')
  for (const bad of [
    undefined,
    '',
    'Bearer',
    'Bearer ',
    secret('a'),
    bearer('c').authorization,
    `Bearer ${secret('a')}x`,
    `Bearer ${secret('a').slice(1)}`,
    `Digest ${secret('a')}`,
    `Bearer ${createHash('sha256').update(secret('b')).digest('hex')}`, // the digest is not the secret
    basic('b', secret('a')).authorization,
    basic('', secret('a')).authorization,
    `Basic ${Buffer.from(secret('a')).toString('base64')}`,
    'Basic !!!',
  ]) {
    t.equal(found(bad), undefined, String(bad))
  }
})

t.test('a name may stand for its old and its new secret while clients change over', async (t) => {
  const { keys } = parseApiKeys(`a:mediator:${secret('old')} a:mediator:${secret('new')}`)
  t.equal(findKey(keys, bearer('old').authorization)?.name, 'a')
  t.equal(findKey(keys, basic('a', secret('new')).authorization)?.name, 'a')
})

t.test('addresses of this machine are told from others, and our pages from those of strangers', async (t) => {
  for (const host of ['127.0.0.1', '127.1.2.3', '::1', 'localhost']) t.ok(isLoopback(host), host)
  for (const host of ['0.0.0.0', '::', '10.0.0.1', 'localhost.example.org', '127.0.0.1.example.org']) t.notOk(isLoopback(host), host)
  t.ok(isAllowedOrigin('http://127.0.0.1:3000', '127.0.0.1:3000', []))
  t.ok(isAllowedOrigin('https://a.example', 'mpr.example', ['https://a.example']))
  for (const origin of ['null', 'http://127.0.0.1:3001', 'https://a.example', 'file://', '']) {
    t.notOk(isAllowedOrigin(origin, '127.0.0.1:3000', ['https://b.example']), origin)
  }
  for (const host of ['localhost', 'LOCALHOST:3000', '127.0.0.1:3000', '[::1]:3000', 'mail.example:80']) {
    t.ok(isKnownHost(host, ['https://mail.example']), host)
  }
  for (const host of ['evil.example:3000', '127.0.0.1.evil.example', 'localhost@evil.example', '10.0.0.1', ''])
    t.notOk(isKnownHost(host, []), host)
})

t.test('a public address without a key is refused at boot unless it is asked for in so many words', async (t) => {
  for (const HOST of ['0.0.0.0', '::', '10.0.0.1', 'mail.example.org']) {
    t.match(faults({ HOST }), /opens the service to the network and there is no API key.*ALLOW_UNAUTHENTICATED=true/)
    t.equal(faults({ HOST, ALLOW_UNAUTHENTICATED: 'true' }), '')
    t.equal(faults({ HOST, API_KEYS: `a:mediator:${secret('a')}` }), '')
    t.equal(faults({ HOST, API_KEYS_FILE: '/run/secrets/keys' }), '')
  }
  t.equal(faults({ HOST: '127.0.0.1' }), '')
  t.match(faults({ API_KEYS: `a:mediator:${secret('a')}`, ALLOW_UNAUTHENTICATED: 'true' }), /unset ALLOW_UNAUTHENTICATED/)
  const text = faults({ API_KEYS: 'a:mediator:hunter2 b:root:hunter2hunter2hunter2' })
  t.match(text, /2 fault/)
  t.notMatch(text, /hunter2/)
})

t.test('a secret may be in a file', async (t) => {
  const file = temporaryFile(t, 'postgres://user:password@db/x\n')
  t.equal(readConfig({ DATABASE_URL_FILE: file }).DATABASE_URL, 'postgres://user:password@db/x')
  t.match(faults({ DATABASE_URL_FILE: '/nowhere' }), /DATABASE_URL_FILE cannot be read/)
})

t.test('a file of keys that has none, or is not there, ends the start with a sentence', async (t) => {
  for (const [text, expected] of [
    ['# none\n', /has no key in it/],
    ['a:mediator:hunter2', /less than 20/],
  ] as const) {
    await t.rejects(startServer({ API_KEYS_FILE: temporaryFile(t, text), DATABASE_URL: await testDatabase(t) }), expected)
  }
  await t.rejects(startServer({ API_KEYS_FILE: '/nowhere', DATABASE_URL: await testDatabase(t) }), /API_KEYS_FILE cannot be read/)
})

t.test('a bucket lets a second of calls through at once, then its rate', async (t) => {
  let now = 0
  const { take } = createRateLimit({ perSecond: 10, now: () => now })
  const passed = (client: string, calls: number) => Array.from({ length: calls }, () => take(client)).filter(Boolean).length
  t.equal(passed('a', 15), 10)
  t.equal(passed('b', 5), 5, 'each client has its own')
  now += 300
  t.equal(passed('a', 15), 3)
  now += 60_000
  t.equal(passed('a', 15), 10, 'never more than a second of calls')
  t.equal(
    Array.from({ length: 1_000 }, () => createRateLimit({ perSecond: 0, now: () => 0 }).take('a')).every(Boolean),
    true,
    '0 is no limit',
  )
})

t.test('a file of keys is read again when it changes and on SIGHUP; one that is broken changes nothing', async (t) => {
  const file = temporaryFile(t, `a:mediator:${secret('a')}`)
  const server = await startServer({ API_KEYS_FILE: file, DATABASE_URL: await testDatabase(t) })
  t.teardown(() => server.end('SIGTERM'))
  const reads = () => server.log.filter(({ msg }) => /keys (were|could not be) read again/.test(msg)).length
  const readAgain = async (act: () => void, waits = reads() + 1) => {
    act()
    while (reads() < waits) await once(server.child.stdout!, 'data')
  }
  const status = async (name: string) => {
    const response = await fetch(`${server.url}/v1/connections/a/messages/count`, { headers: bearer(name) })
    return response.status
  }
  const client = await connect(server.ws, t, bearer('a'))

  await readAgain(() => writeFileSync(file, `a:mediator:${secret('a')}\nb:mediator:${secret('b')}`))
  t.same([await status('a'), await status('b')], [200, 200])
  t.equal(await client.call('ping'), 'pong', 'a key that stays keeps its socket')

  await readAgain(() => server.child.kill('SIGHUP'))
  t.same([await status('a'), await status('b')], [200, 200])

  await readAgain(() => writeFileSync(file, 'b:mediator:'))
  t.same([await status('a'), await status('b')], [200, 200])
  t.match(server.log.slice(-1)[0]!.msg, /former ones stay/)

  const closed = once(client.socket, 'close') as Promise<[number]>
  await readAgain(() => writeFileSync(file, `b:mediator:${secret('b')}`))
  t.equal((await closed)[0], 1008)
  t.same([await status('a'), await status('b')], [401, 200])
  t.notMatch(JSON.stringify(server.log), secret('a'))
})
