import { once } from 'node:events'
import { writeFileSync } from 'node:fs'
import { request } from 'node:http'
import pg from 'pg'
import t from 'tap'
import { createAdministration } from '../src/administration.js'
import { readConfig } from '../src/config.js'
import { createContract, type Operation, type OperationName } from '../src/contract.js'
import { errorTable, type ErrorName } from '../src/errors.js'
import { basic, bearer, secret, temporaryFile } from './helpers/keys.js'
import { connect, message, newConnectionId, startService, type Service } from './helpers/service.js'

async function rest({ url }: Service, verb: string, path: string, body?: unknown, headers: Record<string, string> = {}) {
  const response = await fetch(url + path, {
    method: verb,
    headers: { ...(body !== undefined && { 'content-type': 'application/json' }), ...headers },
    ...(body !== undefined && { body: JSON.stringify(body) }),
  })
  const isJson = response.headers.get('content-type')?.includes('json')
  return { status: response.status, body: (isJson ? await response.json() : await response.text()) as any, headers: response.headers }
}

/** The status of a refused upgrade, with its answer. */
async function refusedUpgrade(url: string, headers: Record<string, string> = {}, path = '/ws') {
  const outgoing = request(url + path, {
    headers: {
      ...headers,
      connection: 'upgrade',
      upgrade: 'websocket',
      'sec-websocket-version': '13',
      'sec-websocket-key': 'dGhlIHNhbXBsZSBub25jZQ==',
    },
  })
  outgoing.end()
  const answered = await Promise.race([
    once(outgoing, 'response').then(([response]) => response),
    once(outgoing, 'upgrade').then(([, socket]) => socket.destroy()),
  ])
  if (!answered.statusCode) return { status: 101, body: undefined, headers: {} as Record<string, string> }
  let text = ''
  for await (const chunk of answered) text += String(chunk)
  return { status: answered.statusCode as number, body: JSON.parse(text), headers: answered.headers as Record<string, string> }
}

const contract = createContract(readConfig({}).limits)
const names = Object.keys(contract) as OperationName[]

const administration = Object.entries(createAdministration(readConfig({}).limits)) as unknown as [string, Operation][]

/** All that the store holds. What was refused must not have changed any of it. */
async function everything(service: Service): Promise<unknown> {
  const client = new pg.Client(service.databaseUrl)
  await client.connect()
  const { rows } = await client.query(
    `SELECT (SELECT json_agg(m ORDER BY connection_id, seq) FROM queued_messages m) AS messages,
      (SELECT json_agg(s ORDER BY connection_id) FROM live_sessions s) AS sessions,
      (SELECT last_value FROM queued_messages_seq_seq) AS seq, (SELECT last_value FROM live_sessions_epoch_seq) AS epoch`,
  )
  await client.end()
  return rows[0]
}

/** The example of the row, for this connection and (where it names messages) with this id. */
function paramsOf(name: OperationName, connectionId: string, id: string): Record<string, unknown> {
  const params = { ...contract[name].example.params, connectionId } as Record<string, unknown>
  return 'messageIds' in params ? { ...params, messageIds: [id] } : params
}

function restTwin(name: OperationName, params: Record<string, unknown>): [verb: string, path: string, body: unknown] {
  return overRest(contract[name], params)
}

function overRest({ http }: Operation, { connectionId, ...rest }: Record<string, unknown>): [verb: string, path: string, body: unknown] {
  const [verb, url] = http.split(' ') as [string, string]
  const path = `/v1${url.replace(':connectionId', connectionId as string)}`
  if (verb === 'POST' || verb === 'PUT') return [verb, path, rest]
  return [verb, `${path}?${new URLSearchParams(rest as Record<string, string>).toString()}`, undefined]
}

t.test('the access matrix', async (t) => {
  const keysFile = temporaryFile(t, `late:mediator:${secret('late')}\nrevoked:mediator+admin:${secret('revoked')}`)
  const service = await startService(t, {
    API_KEYS: `mediator:mediator:${secret('mediator')} admin:admin:${secret('admin')} both:mediator+admin:${secret('both')}`,
    API_KEYS_FILE: keysFile,
    MAX_FAILED_KEYS_PER_MINUTE: '100000',
  })
  // Mail and a live session that there is something to lose of.
  const connectionId = newConnectionId()
  const owner = await service.connect('/ws', bearer('mediator'))
  const id = await owner.call('addMessage', message(connectionId))
  await owner.call('addLiveSession', { connectionId, sessionId: 'mine' })

  const caught = await service.connect('/ws', bearer('revoked'))
  t.equal(await caught.call('getAvailableMessageCount', { connectionId }), 1, 'the key is good until it is revoked')
  const hostile = await service.connect('/ws', bearer('revoked'))
  hostile.socket.pause() // sees no close, and so does not answer it
  const [socketOfHostile] = [...service.inside.websocketServer.clients].slice(-1)
  const gone = once(socketOfHostile!, 'close')
  const closed = once(caught.socket, 'close') as Promise<[number]>
  const before = await everything(service)
  writeFileSync(keysFile, `late:mediator:${secret('late')}`)
  await service.inside.auth.reload()

  await t.test('the socket of a revoked key is closed with 1008, and what it still sends is not done', async (t) => {
    for (const method of names)
      hostile.socket.send(JSON.stringify({ jsonrpc: '2.0', id: method, method, params: paramsOf(method, connectionId, id) }))
    t.equal((await closed)[0], 1008)
    await gone
    t.same(await everything(service), before)
  })

  const outsiders: [who: string, headers: Record<string, string>, ErrorName][] = [
    ['no key', {}, 'unauthorized'],
    ['a wrong key', bearer('unknown'), 'unauthorized'],
    ['a wrong key as Basic', basic('mediator', secret('unknown')), 'unauthorized'],
    ['a revoked key', bearer('revoked'), 'unauthorized'],
    ['a revoked key as Basic', basic('revoked'), 'unauthorized'],
    ['the wrong scope', bearer('admin'), 'forbidden'],
    ['the wrong scope as Basic', basic('admin'), 'forbidden'],
  ]

  for (const name of names) {
    await t.test(`${name} is refused to whoever has no right, without a trace`, async (t) => {
      const params = paramsOf(name, connectionId, id)
      for (const [who, headers, code] of outsiders) {
        const { status, body, headers: answered } = await rest(service, ...restTwin(name, params), headers)
        t.equal(status, errorTable[code].status, `${who} over REST`)
        t.match(body, { error: { code: errorTable[code].code, data: { code, retryable: false } } })
        t.equal(answered.has('www-authenticate'), code === 'unauthorized')
        for (const path of ['/ws', '/', '/ws?dialect=2060', `/ws?key=${secret('mediator')}&access_token=${secret('mediator')}`]) {
          const upgrade = await refusedUpgrade(service.url, headers, path)
          t.equal(upgrade.status, errorTable[code].status, `${who} at the upgrade of ${path.slice(0, 20)}`)
          t.equal(upgrade.body?.error.data.code, code)
        }
      }
      const [verb, path, body] = restTwin(name, params)
      const withQuery = await rest(service, verb, `${path}${path.includes('?') ? '&' : '?'}api_key=${secret('mediator')}`, body)
      t.equal(withQuery.status, 401, 'a key in the query is no key')
      t.same(await everything(service), before, 'nothing was stored, removed or marked, and no session ended')
      t.ok(owner.socket.readyState === owner.socket.OPEN)
    })
  }

  for (const name of names) {
    await t.test(`${name} is done for a key with the scope mediator, on both transports`, async (t) => {
      for (const headers of [bearer('mediator'), basic('mediator'), bearer('both'), bearer('late')]) {
        const mine = newConnectionId()
        const client = await service.connect('/ws', headers)
        const { error } = await client.ask(name, paramsOf(name, mine, id))
        t.equal(error, undefined)
        t.equal((await rest(service, ...restTwin(name, paramsOf(name, mine, id)), headers)).status, 200)
        await client.close()
      }
    })
  }

  for (const [name, operation] of administration) {
    await t.test(
      `${name} of the administration is for a key with the scope admin, and refused to all others without a trace`,
      async (t) => {
        const untouched = await everything(service)
        // What would do harm if it were done: the purge is no dry run.
        const params = (connectionId: string) => ({
          ...operation.example.params,
          connectionId,
          ...(name === 'purgeMessages' && { dryRun: false }),
        })
        for (const [who, headers, code] of [...outsiders.slice(0, 5), ['a mediator', bearer('mediator'), 'forbidden'] as const]) {
          const { status, body } = await rest(service, ...overRest(operation, params(connectionId)), headers)
          t.equal(status, errorTable[code].status, who)
          t.match(body, { error: { code: errorTable[code].code, data: { code } } })
        }
        t.same(await everything(service), untouched, 'nothing was removed, and no session ended')
        for (const headers of [bearer('admin'), basic('admin'), bearer('both')])
          t.equal((await rest(service, ...overRest(operation, params(newConnectionId())), headers)).status, 200)
      },
    )
  }

  await t.test('every route that says nothing of access asks for the scope mediator', async (t) => {
    const open = ['/', '/health', '/ready']
    const served = service.routes.filter(({ method }) => String(method) !== 'HEAD')
    t.ok(served.length > names.length + open.length, 'the routes are found')
    for (const { method, url, config } of served) {
      const verb = [method].flat().find((verb) => verb !== 'HEAD')!
      const path = url.replace(/:\w+/g, 'x').replace('*', 'x')
      const answers = async (headers: Record<string, string>) => {
        const response = await fetch(service.url + path, { method: verb, headers, redirect: 'manual' })
        await response.arrayBuffer()
        return response.status
      }
      const what = `${verb} ${url}`
      if (open.includes(url)) {
        t.notOk([401, 403].includes(await answers({})), `${what} is open`)
        continue
      }
      for (const [who, headers, code] of outsiders.filter(([, , code]) => code === 'unauthorized')) {
        t.equal(await answers(headers), errorTable[code].status, `${what} with ${who}`)
      }
      const access = (config as { access?: string } | undefined)?.access ?? 'mediator'
      t.equal((await answers(bearer('admin'))) === 403, access === 'mediator', `${what} with an admin's key`)
      t.equal((await answers(bearer('mediator'))) === 403, access === 'admin', `${what} with a mediator's key`)
    }
    t.equal((await rest(service, 'GET', '/nothing')).status, 401, 'what is not there is not told to strangers')
    t.equal((await rest(service, 'GET', '/nothing', undefined, bearer('admin'))).status, 404)
  })

  await t.test('a client that can pass nothing but a URL gives its key in it', async (t) => {
    const client = await connect(`${service.url.replace('http://', `ws://mediator:${secret('mediator')}@`)}/ws?dialect=2060`, t)
    t.equal(await client.call('ping'), 'pong')
  })

  await t.test('/docs asks a browser for a key, and says nothing without', async (t) => {
    const { status, headers } = await rest(service, 'GET', '/docs/json')
    t.equal(status, 401)
    t.match(headers.get('www-authenticate'), /^Basic/)
    const { body } = await rest(service, 'GET', '/docs/json', undefined, basic('admin'))
    t.same(body.security, [{ bearer: [] }, { basic: [] }])
  })
})

t.test('OPEN_DOCS shows /docs without a key, and nothing else', async (t) => {
  const service = await startService(t, { API_KEYS: `a:mediator:${secret('a')}`, OPEN_DOCS: 'true' })
  t.equal((await rest(service, 'GET', '/docs/json')).status, 200)
  t.equal((await rest(service, 'GET', '/v1/connections/a/messages/count')).status, 401)
})

t.test('without keys everything is open, and the docs speak of no keys', async (t) => {
  const service = await startService(t)
  t.equal((await rest(service, 'GET', '/v1/connections/a/messages/count')).body, 0)
  t.equal((await rest(service, 'GET', '/metrics')).status, 200)
  t.equal((await rest(service, 'GET', '/v1/admin/connections')).status, 200)
  t.equal((await rest(service, 'GET', '/docs/json')).body.security, undefined)
})

t.test('pages of strangers may not call, on either transport; ours and those allowed may', async (t) => {
  const service = await startService(t, { ALLOWED_ORIGINS: 'https://a.example, https://b.example:8443' })
  const path = '/v1/connections/a/messages/count'
  for (const origin of ['https://evil.example', 'null', 'http://a.example', 'https://a.example.evil.example']) {
    const { status, body, headers } = await rest(service, 'GET', path, undefined, { origin })
    t.equal(status, 403, origin)
    t.match(body, { error: { data: { code: 'forbidden', field: 'origin' } } })
    t.notOk(headers.has('access-control-allow-origin'))
    t.equal((await refusedUpgrade(service.url, { origin })).status, 403)
    t.equal((await rest(service, 'OPTIONS', path, undefined, { origin })).status, 403, 'preflight')
  }
  t.equal((await rest(service, 'GET', path, undefined, { origin: service.url })).status, 200, 'our own page')
  t.equal((await refusedUpgrade(service.url, { origin: service.url })).status, 101)
  for (const origin of ['https://a.example', 'https://b.example:8443']) {
    const { status, headers } = await rest(service, 'GET', path, undefined, { origin })
    t.equal(status, 200)
    t.equal(headers.get('access-control-allow-origin'), origin)
    t.equal((await refusedUpgrade(service.url, { origin })).status, 101)
    const preflight = await rest(service, 'OPTIONS', path, undefined, { origin, 'access-control-request-method': 'DELETE' })
    t.equal(preflight.status, 204)
    t.match(preflight.headers.get('access-control-allow-methods'), 'DELETE')
  }
})

t.test('a name that only resolves to this machine is refused while there are no keys', async (t) => {
  const service = await startService(t)
  const rebound = { host: 'evil.example:3000', origin: 'http://evil.example:3000' }
  const { status, body } = await refusedUpgrade(service.url, rebound)
  t.equal(status, 403)
  t.equal(body.error.data.field, 'host')
  const withKeys = await startService(t, { API_KEYS: `a:mediator:${secret('a')}` })
  t.equal((await refusedUpgrade(withKeys.url, { ...rebound, ...bearer('a') })).status, 101, 'a reverse proxy may pass its own name')
})

t.test('requests without a good key are counted by address, and a good key gets in all the same', async (t) => {
  const service = await startService(t, { API_KEYS: `a:mediator:${secret('a')}`, MAX_FAILED_KEYS_PER_MINUTE: '3' })
  const path = '/v1/connections/a/messages/count'
  const statuses = []
  for (let i = 0; i < 5; i++) statuses.push((await rest(service, 'GET', path, undefined, bearer(`guess ${i}`))).status)
  t.same(statuses, [401, 401, 401, 429, 429])
  const { status, body, headers } = await refusedUpgrade(service.url)
  t.equal(status, 429)
  t.match(body, { error: { code: -32009, data: { code: 'rate_limited', retryable: true } } })
  t.ok(Number(headers['retry-after']) > 0)
  t.equal((await rest(service, 'GET', path, undefined, bearer('a'))).status, 200)
  t.equal((await rest(service, 'GET', '/health')).status, 200)
})

t.test('HTTP requests are limited by key, and probes are not', async (t) => {
  const keys = `a:mediator:${secret('a')} b:mediator:${secret('b')}`
  const service = await startService(t, { API_KEYS: keys, RATE_LIMIT_REQUESTS_PER_SECOND: '5' })
  const started = performance.now()
  const burst = (headers: Record<string, string>, path: string) =>
    Promise.all(Array.from({ length: 60 }, () => rest(service, 'GET', path, undefined, headers).then(({ status }) => status)))
  const count = '/v1/connections/a/messages/count'
  const [a, b] = await Promise.all([burst(bearer('a'), count), burst(bearer('b'), count)])
  for (const statuses of [a, b]) {
    const passed = statuses.filter((status) => status === 200).length
    const windows = Math.ceil((performance.now() - started) / 1_000) + 1
    t.ok(passed >= 5 && passed <= 5 * windows, `${passed} of 60 passed, each key on its own`)
    t.equal(statuses.length - passed, statuses.filter((status) => status === 429).length)
  }
  t.same(new Set(await burst({}, '/health')), new Set([200]))
})

t.test('calls over all sockets of one key are limited together, as a typed error', async (t) => {
  const keys = `a:mediator:${secret('a')} b:mediator:${secret('b')}`
  const service = await startService(t, { API_KEYS: keys, RATE_LIMIT_CALLS_PER_SECOND: '10' })
  const [one, two, other] = await Promise.all(['a', 'a', 'b'].map((name) => service.connect('/ws', bearer(name))))
  const call = () => [one!, two!].map((client) => client.ask('getAvailableMessageCount', { connectionId: 'x' }))
  const started = performance.now()
  const answers = await Promise.all(Array.from({ length: 60 }, call).flat())
  const seconds = (performance.now() - started) / 1_000
  const refused = answers.filter(({ error }) => error)
  const passed = answers.length - refused.length
  t.ok(passed >= 10 && passed <= 11 + 10 * seconds, `${passed} of 120 passed in ${seconds.toFixed(2)} s`)
  for (const { error } of refused) t.match(error, { data: { code: 'rate_limited', retryable: true } })
  t.equal(await other!.call('getAvailableMessageCount', { connectionId: 'x' }), 0, 'another key is not touched')
})
