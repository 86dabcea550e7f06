import { once } from 'node:events'
import Fastify from 'fastify'
import t, { type Test } from 'tap'
import { createAdministration } from '../src/administration.js'
import { readConfig } from '../src/config.js'
import { createContract, type Operation, type OperationName } from '../src/contract.js'
import { errorTable, type ErrorName } from '../src/errors.js'
import { DID, message, newConnectionId, startService, type Service, type TestSocket } from './helpers/service.js'

const settings = { MAX_DID_LENGTH: '200', MAX_PAYLOAD_BYTES: '2000', QUOTA_MESSAGES: '3' }
const contract = createContract(readConfig(settings).limits)
const operations = Object.entries(contract) as unknown as [OperationName, Operation][]
const administration = Object.entries(createAdministration(readConfig(settings).limits)) as unknown as [string, Operation][]
/** All that is REST. */
const documented: [string, Operation][] = [...operations, ...administration]
const service = await startService(t, settings)

/** What a transport answered: the JSON text of the result, or that of the error. */
interface Outcome {
  result?: string
  error?: string
}

async function overSocket(client: TestSocket, method: string, params: unknown): Promise<Outcome> {
  const next = once(client.socket, 'message') as Promise<[Buffer]>
  client.socket.send(JSON.stringify({ jsonrpc: '2.0', id: 'id', method, params }))
  const text = (await next)[0].toString()
  const parts = /^\{"jsonrpc":"2.0","(result|error)":([^]*),"id":"id"\}$/.exec(text)
  if (!parts) throw new Error(`not an answer: ${text}`)
  return { [parts[1]!]: parts[2]! }
}

/** @returns undefined for what HTTP cannot say: a path without a text in it, a query with anything but texts. */
async function overRest(t: Test, service: Service, method: OperationName, params: Record<string, unknown>): Promise<Outcome | undefined> {
  const [verb, route] = contract[method].http.split(' ') as [string, string]
  const { connectionId, ...rest } = params
  if (typeof connectionId !== 'string') return undefined
  const url = new URL(`${service.url}/v1${route.replace(':connectionId', encodeURIComponent(connectionId))}`)
  const init: RequestInit = { method: verb }
  if (verb === 'POST' || verb === 'PUT') {
    init.body = JSON.stringify(rest)
    init.headers = { 'content-type': 'application/json' }
  } else {
    for (const [field, value] of Object.entries(rest)) {
      if (typeof value !== 'string') return undefined
      url.searchParams.set(field, value)
    }
  }
  const response = await fetch(url, init)
  const text = await response.text()
  t.match(response.headers.get('content-type'), /^application\/json/, `${method} answers JSON`)
  if (response.status === 200) return { result: text }
  const error = JSON.stringify(JSON.parse(text).error)
  t.equal(text, `{"error":${error}}`, 'a failure is an object with the error')
  t.equal(response.status, errorTable[JSON.parse(error).data.code as ErrorName].status, 'the status is that of the error')
  return { error }
}

/** Ids differ from message to message, and times from call to call; they are all that may differ. */
const withoutIds = ({ result, error }: Outcome): Outcome =>
  error ? { error } : { result: result!.replace(/"\d+-[0-9a-z]{1,6}"/g, '"ID"').replace(/"since":"[^"]+"/, '"since":"TIME"') }

type Call = [method: OperationName, params: object]

/** One call, made on each transport after the same calls before it. */
interface Scenario {
  what: string
  before?: (connectionId: string) => Call[]
  params: (connectionId: string) => object
}

const receivedAt = '2026-01-31T12:00:00.000Z'
const otherDid = 'did:example:other'
const stored = (connectionId: string): Call[] => [
  ['addMessage', message(connectionId, 1, { receivedAt, payload: { b: 1, a: '\u0000\ud800' } })],
  ['addMessage', message(connectionId, 2, { receivedAt, payload: 'a text', recipientDids: [otherDid] })],
]
const pushToken = { type: 'fcm', token: 'a token' }
const registered = (connectionId: string): Call[] => [['setPushToken', { connectionId, ...pushToken }]]
const live = (connectionId: string): Call[] => [['addLiveSession', { connectionId, sessionId: 'session' }]]
const byConnection = (connectionId: string) => ({ connectionId })

const SUCCESSES: Record<OperationName, Scenario[]> = {
  addMessage: [
    { what: 'an object', params: message },
    { what: 'a text', params: (connectionId) => message(connectionId, 0, { payload: 'a text' }) },
    {
      what: 'everything optional',
      params: (connectionId) => message(connectionId, 0, { receivedAt, idempotencyKey: 'key', token: 'token' }),
    },
  ],
  takeFromQueue: [
    { what: 'an empty queue', params: byConnection },
    { what: 'all', before: stored, params: byConnection },
    { what: 'one', before: stored, params: (connectionId) => ({ connectionId, limit: 1 }) },
    { what: 'those of a DID', before: stored, params: (connectionId) => ({ connectionId, recipientDid: otherDid, limitBytes: 10 }) },
    { what: 'with deletion', before: stored, params: (connectionId) => ({ connectionId, deleteMessages: true }) },
  ],
  getAvailableMessageCount: [
    { what: 'an empty queue', params: byConnection },
    { what: 'all', before: stored, params: byConnection },
    { what: 'those of a DID', before: stored, params: (connectionId) => ({ connectionId, recipientDid: otherDid }) },
  ],
  removeMessages: [
    { what: 'nothing', params: (connectionId) => ({ connectionId, messageIds: [] }) },
    { what: 'what is unknown', before: stored, params: (connectionId) => ({ connectionId, messageIds: ['1-a', 'unknown'] }) },
  ],
  removeAllMessages: [{ what: 'those of a DID', before: stored, params: (connectionId) => ({ connectionId, recipientDid: DID }) }],
  getLiveSession: [
    { what: 'none', params: byConnection },
    { what: 'one', before: live, params: byConnection },
  ],
  addLiveSession: [
    { what: 'the first', params: (connectionId) => ({ connectionId, sessionId: 'session' }) },
    { what: 'the same again', before: live, params: (connectionId) => ({ connectionId, sessionId: 'session' }) },
  ],
  removeLiveSession: [
    { what: 'none', params: byConnection },
    { what: 'one', before: live, params: byConnection },
    { what: 'one of this name', before: live, params: (connectionId) => ({ connectionId, sessionId: 'session' }) },
    { what: 'one of another name', before: live, params: (connectionId) => ({ connectionId, sessionId: 'other' }) },
  ],
  setPushToken: [
    { what: 'the first', params: (connectionId) => ({ connectionId, ...pushToken }) },
    { what: 'another', before: registered, params: (connectionId) => ({ connectionId, type: 'fcm', token: 'another', project: 'x' }) },
  ],
  getPushToken: [
    { what: 'none', params: byConnection },
    { what: 'one', before: registered, params: byConnection },
  ],
  removePushToken: [
    { what: 'none', params: byConnection },
    { what: 'one', before: registered, params: byConnection },
  ],
}

for (const [method, { params, example }] of operations) {
  t.test(`${method} succeeds with the same text on WebSocket and REST`, async (t) => {
    const client = await service.connect()
    t.ok(SUCCESSES[method]?.length, 'a new operation needs a line above')
    for (const { what, before, params } of SUCCESSES[method]) {
      const outcomes: Outcome[] = []
      for (const ask of [
        (params: object) => overSocket(client, method, params),
        (params: object) => overRest(t, service, method, params as Record<string, unknown>),
      ]) {
        const connectionId = newConnectionId()
        for (const call of before?.(connectionId) ?? []) await client.call(...call)
        outcomes.push(withoutIds((await ask(params(connectionId)))!))
      }
      t.type(outcomes[0]!.result, 'string', `${what}: it succeeds`)
      t.strictSame(outcomes[1], outcomes[0], what)
    }
  })

  t.test(`${method} as in its example gives the same on WebSocket and REST`, async (t) => {
    const client = await service.connect()
    const given = { ...(example.params as object), connectionId: newConnectionId() }
    const first = withoutIds(await overSocket(client, method, given))
    if (method === 'removeLiveSession') t.equal(first.result, 'false', 'nothing is live')
    t.strictSame(withoutIds((await overRest(t, service, method, given))!), first)
  })

  t.test(`${method} fails with the same error on WebSocket and REST`, async (t) => {
    const client = await service.connect()
    let compared = 0
    for (const [field, schema] of Object.entries(params.properties)) {
      const tooLong = schema.maxLength ? ['x'.repeat(schema.maxLength + 1)] : schema.maxItems ? [Array(schema.maxItems + 1).fill('x')] : []
      for (const value of [undefined, null, '', 'x\u0000', 7, -1, 1.5, true, {}, [], [7], { text: 'x'.repeat(2_000) }, ...tooLong]) {
        const given = { ...(example.params as object), connectionId: newConnectionId(), [field]: value }
        const actual = await overRest(t, service, method, given)
        if (!actual) continue
        compared++
        const expected = await overSocket(client, method, given)
        t.strictSame(withoutIds(actual), withoutIds(expected), `${field} ${JSON.stringify(value)?.slice(0, 40)}`)
      }
    }
    t.ok(compared > 2, `${compared} calls were compared`)
  })
}

t.test('a full queue refuses with the same error on WebSocket and REST', async (t) => {
  const client = await service.connect()
  const connectionId = newConnectionId()
  for (let n = 0; n < 3; n++) await client.call('addMessage', message(connectionId, n))
  const { error } = await overSocket(client, 'addMessage', message(connectionId))
  t.match(JSON.parse(error!), { code: errorTable.quota_exceeded.code, data: { code: 'quota_exceeded' } })
  t.strictSame(await overRest(t, service, 'addMessage', message(connectionId)), { error })
})

t.test('rpc.discover describes every operation of the contract', async (t) => {
  const client = await service.connect()
  const document = await client.call('rpc.discover')
  t.match(document.openrpc, /^1\./)
  t.same(
    document.methods.map(({ name }: { name: string }) => name),
    Object.keys(contract),
  )
  for (const [name, { params, result, summary, example }] of operations) {
    const method = document.methods.find((method: { name: string }) => method.name === name)
    t.equal(method.summary, summary)
    t.equal(method.paramStructure, 'by-name')
    t.same(method.result.schema, JSON.parse(JSON.stringify(result)), `${name}: the result`)
    t.same(Object.fromEntries(method.params.map((param: any) => [param.name, param.schema])), JSON.parse(JSON.stringify(params.properties)))
    const required = method.params.filter((param: any) => param.required).map((param: any) => param.name)
    t.same(required, params.required, `${name}: what is required`)
    for (const param of method.params) t.type(param.required, 'boolean', `${name} ${param.name}`)
    const given = Object.fromEntries(method.examples[0].params.map((param: any) => [param.name, param.value]))
    t.same(given, example.params, `${name}: the example`)
    t.same(method.examples[0].result.value, example.result)
    for (const { code } of Object.values(errorTable))
      t.ok(
        method.errors.some((error: any) => error.code === code),
        `${name} may fail with ${code}`,
      )
  }
})

t.test('the administration is no method of JSON-RPC', async (t) => {
  const client = await service.connect()
  for (const [name, { example }] of administration)
    t.match((await client.ask(name, example.params)).error, { data: { code: 'method_not_found' } })
})

t.test('what api.md calls optional is optional, and the rest is required', async (t) => {
  const client = await service.connect()
  const { methods } = await client.call('rpc.discover')
  const required: Record<OperationName, string[]> = {
    addMessage: ['connectionId', 'recipientDids', 'payload'],
    takeFromQueue: ['connectionId'],
    getAvailableMessageCount: ['connectionId'],
    removeMessages: ['connectionId', 'messageIds'],
    removeAllMessages: ['connectionId', 'recipientDid'],
    getLiveSession: ['connectionId'],
    addLiveSession: ['connectionId', 'sessionId'],
    removeLiveSession: ['connectionId'],
    setPushToken: ['connectionId', 'type', 'token'],
    getPushToken: ['connectionId'],
    removePushToken: ['connectionId'],
  }
  for (const { name, params } of methods) {
    t.same(
      params.filter((param: any) => param.required).map((param: any) => param.name),
      required[name as OperationName],
      name,
    )
  }
})

/** Every operation of the OpenAPI document by its operationId. */
async function openApi(): Promise<{ document: any; byId: Map<string, any> }> {
  const document = (await service.rest('GET', '/docs/json')).body
  const byId = new Map<string, any>()
  for (const [path, verbs] of Object.entries<any>(document.paths))
    for (const [verb, operation] of Object.entries<any>(verbs))
      if (operation.operationId) byId.set(operation.operationId, { ...operation, verb, path })
  return { document, byId }
}

/** Checks values as a stranger would who has only the document: with JSON Schema, nothing converted. */
async function createValidator(schemas: Record<string, object>): Promise<(name: string, value: unknown) => Promise<string | undefined>> {
  const validator = Fastify({ ajv: { customOptions: { coerceTypes: false, removeAdditional: false, useDefaults: false } } })
  for (const [name, schema] of Object.entries(schemas)) {
    const body = { type: 'object', properties: { value: schema }, required: ['value'] }
    validator.post(`/${name}`, { schema: { body } }, async () => ({}))
  }
  await validator.ready()
  return async (name, value) => {
    const response = await validator.inject({ method: 'POST', url: `/${name}`, payload: { value } as object })
    return response.statusCode === 200 ? undefined : response.body
  }
}

t.test('/docs/json is OpenAPI 3.1 with every operation of the contract and of the administration', async (t) => {
  const { document, byId } = await openApi()
  t.match(document.openapi, /^3\.1\.\d+$/)
  t.same([...byId.keys()].sort(), documented.map(([name]) => name).sort())
  for (const [name, { summary, http }] of documented) {
    const { verb, path, ...operation } = byId.get(name)
    t.equal(`${verb.toUpperCase()} ${path}`, http.replace(' ', ' /v1').replace(':connectionId', '{connectionId}'))
    t.equal(operation.summary, summary)
    t.equal(operation.tags[0] === 'administration', !(name in contract), `${name}: its tag`)
  }
})

t.test('/docs/json has every parameter, required or not, in its place', async (t) => {
  const { byId } = await openApi()
  for (const [name, { params }] of documented) {
    const { parameters = [], requestBody } = byId.get(name)
    const body = requestBody?.content['application/json'].schema
    const found = [
      ...parameters.map((parameter: any) => [parameter.name, parameter.required ?? false]),
      ...Object.keys(body?.properties ?? {}).map((field) => [field, body.required?.includes(field) ?? false]),
    ]
    const expected = Object.keys(params.properties).map((field) => [field, params.required?.includes(field) ?? false])
    t.same(Object.fromEntries(found), Object.fromEntries(expected), name)
    t.equal(found.length, expected.length, `${name}: each once`)
    for (const parameter of parameters)
      t.equal(parameter.in, parameter.name === 'connectionId' ? 'path' : 'query', `${name} ${parameter.name}`)
  }
})

t.test('/docs/json has examples that are valid against their own schema', async (t) => {
  const { byId } = await openApi()
  for (const [name, { example }] of documented) {
    const { parameters, requestBody, responses } = byId.get(name)
    const body = requestBody?.content['application/json']
    const answer = responses['200'].content?.['application/json']
    t.ok(answer, `${name}: the answer is described`)
    const { connectionId, ...rest } = example.params as Record<string, unknown>
    const validate = await createValidator({
      result: answer?.schema ?? {},
      ...(body && { body: body.schema }),
      ...Object.fromEntries(parameters.map((parameter: any) => [parameter.name, parameter.schema])),
    })
    t.same(answer?.example, example.result, `${name}: the example of the result`)
    t.equal(await validate('result', answer?.example ?? null), undefined, `${name}: the result is valid`)
    if (body) {
      t.same(body.example, rest, `${name}: the example of the body`)
      t.equal(await validate('body', body.example), undefined, `${name}: the body is valid`)
      if (body.schema.required?.length) t.ok(await validate('body', {}), `${name}: an empty body is not valid`)
    }
    for (const parameter of parameters) {
      const value = parameter.name === 'connectionId' ? connectionId : rest[parameter.name]
      t.equal(parameter.example, value, `${name}: the example of ${parameter.name}`)
      if (value !== undefined) t.equal(await validate(parameter.name, value), undefined, `${name}: ${parameter.name} is valid`)
    }
  }
})

t.test('a real answer and a real error are valid against the document', async (t) => {
  const { byId } = await openApi()
  const client = await service.connect()
  const connectionId = newConnectionId()
  await client.call('addMessage', message(connectionId))
  const { responses } = byId.get('takeFromQueue')
  const validate = await createValidator({
    result: responses['200'].content['application/json'].schema,
    failure: responses.default.content['application/json'].schema,
  })
  const path = `/v1/connections/${connectionId}/messages/take`
  const taken = await service.rest('POST', path, {})
  t.equal(taken.body.length, 1)
  t.equal(await validate('result', taken.body), undefined)
  const failed = await service.rest('POST', path, { limit: 0 })
  t.equal(failed.status, 400)
  t.equal(await validate('failure', failed.body), undefined)
  t.ok(
    await validate('failure', { error: { code: 1, message: '', data: { code: 'unheard of', retryable: false } } }),
    'it is no rubber stamp',
  )
})
