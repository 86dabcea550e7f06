import { createHash } from 'node:crypto'
import { once } from 'node:events'
import pg from 'pg'
import t from 'tap'
import { createAdministration } from '../src/administration.js'
import { createContract, type Operation, type OperationName } from '../src/contract.js'
import { readConfig } from '../src/config.js'
import { startServer } from './helpers/process.js'
import { connect, newConnectionId, testDatabase } from './helpers/service.js'

/**
 * What must be nowhere but in the queue. Each is part of calls that succeed, that are refused and that break, over both
 * transports; then all that the service said about them is searched.
 */
const CANARY = {
  payload: 'canary-payload-7f3a',
  did: 'did:example:canary-did-7f3a',
  token: 'canary-token-7f3a',
  idempotencyKey: 'canary-idempotency-7f3a',
  key: createHash('sha256').update('canary').digest('hex'),
  wrongKey: createHash('sha256').update('another canary').digest('hex'),
}
const contract = createContract(readConfig({}).limits)
const names = Object.keys(contract) as OperationName[]

/** Every operation with canaries wherever a text may stand; `spoil` makes it one that is refused. */
function paramsOf(name: OperationName, connectionId: string, spoil: boolean): Record<string, unknown> {
  const rest = {
    addMessage: {
      recipientDids: spoil ? [CANARY.did, 7] : [CANARY.did],
      payload: { ciphertext: CANARY.payload },
      idempotencyKey: CANARY.idempotencyKey,
      pushNotificationToken: { type: 'fcm', token: CANARY.token },
      token: CANARY.token,
    },
    takeFromQueue: { recipientDid: CANARY.did, limit: spoil ? 0 : 10 },
    getAvailableMessageCount: { recipientDid: spoil ? CANARY.did + '\u0000' : CANARY.did },
    removeMessages: { messageIds: [spoil ? { [CANARY.payload]: CANARY.token } : CANARY.payload] },
    removeAllMessages: { recipientDid: spoil ? [CANARY.did] : CANARY.did },
    getLiveSession: spoil ? { connectionId: { [CANARY.did]: CANARY.payload } } : {},
    addLiveSession: { sessionId: spoil ? CANARY.payload.repeat(100) : 'session' },
    removeLiveSession: spoil ? { sessionId: [CANARY.payload] } : {},
    setPushToken: { type: spoil ? 7 : 'fcm', token: CANARY.token },
    getPushToken: spoil ? { connectionId: { [CANARY.token]: 1 } } : {},
    removePushToken: spoil ? { connectionId: [CANARY.token] } : {},
  }[name] as Record<string, unknown>
  return { connectionId, ...rest }
}

const administration = Object.entries(createAdministration(readConfig({}).limits)) as unknown as [string, Operation][]

/** The same for the administration, of a connection whose mail and push token are canaries. */
function administrationParams(name: string, connectionId: string, spoil: boolean): Record<string, unknown> {
  const of: Record<string, unknown> = {
    ...(name === 'listConnections' && { by: spoil ? CANARY.did : 'age' }),
    ...(name.startsWith('list') && spoil && { cursor: CANARY.payload }),
    ...(name === 'purgeMessages' && { messageIds: [spoil ? { [CANARY.did]: CANARY.token } : CANARY.payload], dryRun: false }),
    ...(name === 'endLiveSession' && { sessionId: spoil ? CANARY.payload.repeat(100) : CANARY.did }),
  }
  return name === 'inspectConnection' && spoil ? { connectionId: '' } : { connectionId, ...of }
}

t.test('no payload, DID, token or key is in a log line, a metric, an error or what the operator is shown', async (t) => {
  const databaseUrl = await testDatabase(t)
  const server = await startServer({ DATABASE_URL: databaseUrl, LOG_LEVEL: 'trace', API_KEYS: `canary:mediator+admin:${CANARY.key}` })
  t.teardown(() => server.end('SIGTERM'))
  const authorization = `Bearer ${CANARY.key}`
  const said: string[] = [] // by the service, of calls that failed
  const shown: string[] = [] // to the operator
  let failures = 0
  let successes = 0

  const rest = async (verb: string, path: string, body?: unknown, headers: Record<string, string> = { authorization }) => {
    const response = await fetch(server.url + path, {
      method: verb,
      headers: { ...headers, ...(body !== undefined && { 'content-type': 'application/json' }) },
      ...(body !== undefined && { body: typeof body === 'string' ? body : JSON.stringify(body) }),
    })
    const text = await response.text()
    if (response.ok) {
      if (path.startsWith('/v1/admin')) shown.push(text)
      return void successes++
    }
    failures++
    said.push(text, JSON.stringify([...response.headers]))
  }
  const call = async ({ http }: Operation, { connectionId, ...params }: Record<string, unknown>) => {
    const [verb, url] = http.split(' ') as [string, string]
    const path = `/v1${url.replace(':connectionId', String(connectionId))}`
    if (verb === 'POST' || verb === 'PUT') await rest(verb, path, params)
    else await rest(verb, `${path}?${new URLSearchParams(params as Record<string, string>).toString()}`)
  }
  const callAll = async (spoil: boolean) => {
    const client = await connect(server.ws, undefined, { authorization })
    const full = newConnectionId()
    for (const name of ['addMessage', 'setPushToken'] as const) await call(contract[name], paramsOf(name, full, false))
    for (const [name, operation] of administration) await call(operation, administrationParams(name, full, spoil))
    for (const name of names) {
      const connectionId = newConnectionId()
      const params = paramsOf(name, connectionId, spoil)
      const { error } = await client.ask(name, params)
      if (error) {
        failures++
        said.push(JSON.stringify(error))
      } else {
        successes++
      }
      await call(contract[name], { ...params, connectionId })
    }
    for (const frame of [`{"jsonrpc":"2.0","id":1,"method":"${CANARY.payload}"}`, `{"${CANARY.payload}"`, `[{"x":"${CANARY.did}"}]`]) {
      const answer = JSON.stringify(await client.raw(frame))
      said.push(
        frame.includes('"method"') ? answer.replaceAll(CANARY.payload, 'the name of the method, which a caller is told again') : answer,
      )
    }
    await rest('POST', '/v1/connections/x/messages', `{"payload": ${CANARY.payload}`)
    await client.close()
  }

  await callAll(false)
  await callAll(true)
  const strangers: Record<string, string>[] = [
    {},
    { authorization: `Bearer ${CANARY.wrongKey}` },
    { authorization: `Basic ${btoa(`canary:${CANARY.wrongKey}`)}` },
  ]
  for (const headers of strangers) {
    await rest('GET', `/v1/connections/x/messages/count?recipientDid=${CANARY.did}&key=${CANARY.key}`, undefined, headers)
  }
  await t.rejects(connect(`${server.ws}?key=${CANARY.key}`), /401/)

  // Postgres puts the row into the error, and then cannot run the statement at all.
  const database = new pg.Client(databaseUrl)
  await database.connect()
  t.teardown(() => database.end())
  await database.query(`ALTER TABLE queued_messages ADD CHECK (payload NOT LIKE '%canary%') NOT VALID`)
  await callAll(false)
  await database.query('ALTER TABLE queued_messages RENAME TO elsewhere')
  await database.query('ALTER TABLE live_sessions RENAME TO elsewhere_too')
  await callAll(false)
  t.ok(
    server.log.some(({ msg }) => msg === 'call failed'),
    'what broke is in the log',
  )

  const metrics = await (await fetch(`${server.url}/metrics`, { headers: { authorization } })).text()
  t.match(metrics, /outcome="internal_error"/)
  server.child.kill('SIGTERM')
  await once(server.child, 'close')

  t.ok(successes >= 16 && failures >= 30, `${successes} calls succeeded and ${failures} failed`)
  t.ok(server.log.length > 20, 'the log has lines')
  t.ok(shown.join('\n').includes(CANARY.token.slice(-6)), 'the operator is shown the end of the token')
  t.ok(
    server.log.some(({ msg }) => msg === 'messages were purged'),
    'a purge is in the log',
  )
  for (const [what, canary] of Object.entries(CANARY)) {
    t.notOk(JSON.stringify(server.log).includes(canary), `no ${what} in the log`)
    t.notOk(metrics.includes(canary), `no ${what} in the metrics`)
    t.notOk(said.join('\n').includes(canary), `no ${what} in the answer of an error`)
    t.notOk(shown.join('\n').includes(canary), `no ${what} in what the operator is shown`)
  }
})
