import { once } from 'node:events'
import { request } from 'node:http'
import pg from 'pg'
import t, { type Test } from 'tap'
import { readConfig } from '../src/config.js'
import { createContract, type OperationName } from '../src/contract.js'
import { errorTable, type ErrorName } from '../src/errors.js'
import { DID, message, newConnectionId, startService, type Service, type TestSocket } from './helpers/service.js'

const MAX = { PAYLOAD_BYTES: 1_000, FRAME_BYTES: 16_384, DEPTH: 8, BATCH: 3, DID_LENGTH: 100, RECIPIENT_DIDS: 3, MESSAGE_IDS: 3 }
const MAX_ID = 255

const settings = Object.fromEntries(Object.entries(MAX).map(([name, value]) => [`MAX_${name}`, String(value)]))
const contract = createContract(readConfig(settings).limits)
const service = await startService(t, settings)
const roomy = await startService(t)

/** What a refusal must say. Without `field`, or `limit`, it must name none. */
interface Refusal {
  code: ErrorName
  field?: string
  limit?: number
}

async function sql<Row>(service: Service, text: string, values: unknown[] = []): Promise<Row[]> {
  const client = new pg.Client(service.databaseUrl)
  await client.connect()
  try {
    return (await client.query({ text, values, rowMode: 'array' })).rows as Row[]
  } finally {
    await client.end()
  }
}

async function storedMessages(service: Service): Promise<number> {
  const [row] = await sql<[number]>(service, 'SELECT count(*)::int FROM queued_messages')
  return row![0]
}

async function storedPayloads(service: Service, connectionId: string): Promise<string[]> {
  const rows = await sql<[string]>(service, 'SELECT payload FROM queued_messages WHERE connection_id = $1 ORDER BY seq', [connectionId])
  return rows.map(([payload]) => payload)
}

/** An HTTP request whose path goes out as it is: fetch would resolve dots and repair escapes. */
async function http(
  service: Service,
  method: string,
  path: string,
  body?: string | Buffer,
  contentType = 'application/json',
): Promise<{ status: number; text: string }> {
  const headers = body === undefined ? {} : { 'content-type': contentType, 'content-length': Buffer.byteLength(body) }
  return new Promise((resolve, reject) => {
    const outgoing = request({ port: new URL(service.url).port, host: '127.0.0.1', method, path, headers, agent: false }, (response) => {
      const chunks: Buffer[] = []
      response
        .on('data', (chunk: Buffer) => chunks.push(chunk))
        .on('end', () => resolve({ status: response.statusCode!, text: Buffer.concat(chunks).toString() }))
        .on('error', reject)
    })
    outgoing.on('error', reject).end(body)
  })
}

/** The REST twin of a call, or undefined when HTTP cannot say it (a number as connectionId, a boolean in a query). */
function restTwin(method: OperationName, params: Record<string, unknown>): [verb: string, path: string, body?: string] | undefined {
  const [verb, url] = contract[method].http.split(' ') as [string, string]
  const { connectionId, ...rest } = params
  if (typeof connectionId !== 'string' || !isWellFormed(connectionId)) return undefined
  const path = `/v1${url.replace(':connectionId', encodeURIComponent(connectionId))}`
  if (verb === 'POST' || verb === 'PUT') return [verb, path, JSON.stringify(rest)]
  if (!Object.values(rest).every((value) => typeof value === 'string' && isWellFormed(value))) return undefined
  const query = new URLSearchParams(rest as Record<string, string>).toString()
  return [verb, query ? `${path}?${query}` : path]
}

const isWellFormed = (text: string) => !/\p{Surrogate}/u.test(text)

/** Sends a frame and returns the text of the next one. */
async function exchange(client: TestSocket, frame: string | Buffer): Promise<string> {
  const next = once(client.socket, 'message') as Promise<[Buffer]>
  client.socket.send(frame)
  const [data] = await next
  return data.toString()
}

function checkRefusal(t: Test, error: any, { code, field, limit }: Refusal, what: string): void {
  t.ok(error, `${what} is refused`)
  t.equal(error?.code, errorTable[code].code, `${what}: the JSON-RPC code`)
  const data = { code, retryable: errorTable[code].retryable, ...(field && { field }), ...(limit !== undefined && { limit }) }
  t.same(error?.data, data, `${what}: the name, the field and the limit`)
  if (field && field !== 'body') t.ok(error?.message?.toLowerCase().includes(field.toLowerCase()), `${what}: the message names the field`)
  if (limit !== undefined) t.match(error?.message, limit === 1 ? /empty|at least 1/ : String(limit), `${what}: the message names the limit`)
}

/** The call is refused in the same words on both transports, the socket answers the next call, and nothing was stored. */
async function refuses(t: Test, client: TestSocket, method: OperationName, params: object, refusal: Refusal, what: string): Promise<void> {
  const stored = await storedMessages(service)
  const { error } = await client.ask(method, params)
  checkRefusal(t, error, refusal, what)
  const twin = restTwin(method, params as Record<string, unknown>)
  if (twin) {
    const { status, text } = await http(service, ...twin)
    t.equal(status, errorTable[refusal.code].status, `${what} over REST: the status`)
    t.same(JSON.parse(text).error, error, `${what} over REST: the same error`)
  }
  t.equal(await client.call('ping'), 'pong', `${what}: the socket answers the next call`)
  t.equal(await storedMessages(service), stored, `${what}: nothing was stored`)
}

type Case = [what: string, change: Record<string, unknown>, refusal: Refusal]

const invalid = (field: string, limit?: number): Refusal => ({ code: 'invalid_params', field, ...(limit !== undefined && { limit }) })
const wrongTypes = (field: string, values: unknown[]): Case[] =>
  values.map((value) => [`${field} ${JSON.stringify(value)}`, { [field]: value }, invalid(field)])

/** What every text parameter refuses. */
function textCases(field: string, maxLength: number, at = field, wrap = (value: unknown): unknown => value): Case[] {
  return [
    [`${at} of type number`, { [field]: wrap(7) }, invalid(at)],
    [`${at} null`, { [field]: wrap(null) }, invalid(at)],
    [`${at} that is an object`, { [field]: wrap({}) }, invalid(at)],
    [`empty ${at}`, { [field]: wrap('') }, invalid(at, 1)],
    [`too long ${at}`, { [field]: wrap('x'.repeat(maxLength + 1)) }, invalid(at, maxLength)],
    [`too long ${at} in another script`, { [field]: wrap('日'.repeat(maxLength + 1)) }, invalid(at, maxLength)],
    [`${at} with NUL`, { [field]: wrap('a\u0000b') }, invalid(at)],
    [`${at} with a lone high surrogate`, { [field]: wrap('a\ud800') }, invalid(at)],
    [`${at} with a lone low surrogate`, { [field]: wrap('\udc00a') }, invalid(at)],
    [`${at} with surrogates in the wrong order`, { [field]: wrap('\ude00\ud83d') }, invalid(at)],
  ]
}

const missing = (field: string): Case => [`missing ${field}`, { [field]: undefined }, invalid(field)]
const connectionCases: Case[] = [
  missing('connectionId'),
  ...textCases('connectionId', MAX_ID),
  ...wrongTypes('connectionId', [true, ['a']]),
]
const recipientDidCases = textCases('recipientDid', MAX.DID_LENGTH)
const sessionCases = textCases('sessionId', MAX_ID)
const positive = (field: string): Case[] => [
  ...[0, -1].map((value): Case => [`${field} ${value}`, { [field]: value }, invalid(field, 1)]),
  ...wrongTypes(field, [1.5, '10', true, null, [1], {}]),
]

/** What each operation refuses, as a change of parameters that it accepts. */
const CASES: Record<OperationName, { good: (connectionId: string) => Record<string, unknown>; cases: Case[] }> = {
  addMessage: {
    good: (connectionId) => message(connectionId),
    cases: [
      missing('recipientDids'),
      ...wrongTypes('recipientDids', [DID, null, 1, {}]),
      ['empty recipientDids', { recipientDids: [] }, invalid('recipientDids', 1)],
      ['too many recipientDids', { recipientDids: Array(4).fill(DID) }, invalid('recipientDids', MAX.RECIPIENT_DIDS)],
      ...textCases('recipientDids', MAX.DID_LENGTH, 'recipientDids.1', (value) => [DID, value]),
      missing('payload'),
      ...wrongTypes('payload', [null, 7, true, [], [{}], '']),
      ['too big payload', { payload: 'x'.repeat(999) }, { code: 'payload_too_large', field: 'payload', limit: MAX.PAYLOAD_BYTES }],
      [
        'payload of few characters and too many bytes',
        { payload: { text: '日'.repeat(330) } },
        { code: 'payload_too_large', field: 'payload', limit: MAX.PAYLOAD_BYTES },
      ],
      ...wrongTypes('receivedAt', [
        1,
        null,
        {},
        '',
        'yesterday',
        '2026-01-31',
        '2026-01-31T12:00:00',
        '2026-01-31 12:00:00Z',
        '2026-13-01T12:00:00Z',
        '2026-02-30T12:00:00Z',
        '2026-01-31T12:60:00Z',
        '2026-01-31T12:00:00+23:59',
        '0000-01-01T00:00:00Z',
        'Sat, 31 Jan 2026 12:00:00 GMT',
        '2026-01-31T12:00:00Z\u0000',
      ]),
      ['too long receivedAt', { receivedAt: `2026-01-31T12:00:00.${'0'.repeat(64)}Z` }, invalid('receivedAt', 64)],
      ...textCases('idempotencyKey', 128),
      ...textCases('token', 4_096),
      ...wrongTypes('pushNotificationToken', ['text', null, []]),
      ['push token without type', { pushNotificationToken: { token: 'x' } }, invalid('pushNotificationToken.type')],
      ['push token without token', { pushNotificationToken: { type: 'fcm' } }, invalid('pushNotificationToken.token')],
      ['push token with NUL', { pushNotificationToken: { type: 'fcm', token: '\u0000' } }, invalid('pushNotificationToken.token')],
      [
        'push token of a long type',
        { pushNotificationToken: { type: 'x'.repeat(33), token: 'x' } },
        invalid('pushNotificationToken.type', 32),
      ],
    ],
  },
  takeFromQueue: {
    good: (connectionId) => ({ connectionId }),
    cases: [
      ...recipientDidCases,
      ...positive('limit'),
      ...positive('limitBytes'),
      ...wrongTypes('deleteMessages', ['true', 1, 0, null, {}]),
    ],
  },
  getAvailableMessageCount: { good: (connectionId) => ({ connectionId }), cases: recipientDidCases },
  removeMessages: {
    good: (connectionId) => ({ connectionId, messageIds: ['1-a'] }),
    cases: [
      missing('messageIds'),
      ...wrongTypes('messageIds', ['1-a', null, 7, {}]),
      ['too many messageIds', { messageIds: ['1', '2', '3', '4'] }, invalid('messageIds', MAX.MESSAGE_IDS)],
      ...[7, null, {}].map((id): Case => [`message id ${JSON.stringify(id)}`, { messageIds: ['1-a', id] }, invalid('messageIds.1')]),
      ['too long message id', { messageIds: ['x'.repeat(129)] }, invalid('messageIds.0', 128)],
    ],
  },
  removeAllMessages: {
    good: (connectionId) => ({ connectionId, recipientDid: DID }),
    cases: [missing('recipientDid'), ...recipientDidCases],
  },
  getLiveSession: { good: (connectionId) => ({ connectionId }), cases: [] },
  addLiveSession: {
    good: (connectionId) => ({ connectionId, sessionId: 'session' }),
    cases: [missing('sessionId'), ...sessionCases],
  },
  removeLiveSession: { good: (connectionId) => ({ connectionId }), cases: sessionCases },
  setPushToken: {
    good: (connectionId) => ({ connectionId, type: 'fcm', token: 'a token' }),
    cases: [missing('type'), missing('token'), ...textCases('type', 32), ...textCases('token', 4_096), ...textCases('project', 64)],
  },
  getPushToken: { good: (connectionId) => ({ connectionId }), cases: [] },
  removePushToken: { good: (connectionId) => ({ connectionId }), cases: [] },
}

for (const method of Object.keys(CASES) as OperationName[]) {
  const { good, cases } = CASES[method]

  t.test(`${method} names the parameter that is wrong and the limit that was passed`, async (t) => {
    const client = await service.connect()
    for (const [what, change, refusal] of [...connectionCases, ...cases]) {
      await refuses(t, client, method, { ...good(newConnectionId()), ...change }, refusal, what)
    }
  })

  t.test(`${method} ignores parameters that it does not know, also __proto__ and constructor`, async (t) => {
    const client = await service.connect()
    const params = JSON.stringify(good(newConnectionId())).slice(0, -1)
    const frame = (more: string) => `{"jsonrpc":"2.0","id":"x","method":"${method}","params":${params},${more}}}`
    for (const more of [
      '"__proto__":{"connectionId":7}',
      '"constructor":{"prototype":{}}',
      '"toString":null,"hasOwnProperty":1',
      '"unknown":[]',
    ]) {
      const { error } = JSON.parse(await exchange(client, frame(more)))
      t.equal(error, undefined, more.slice(0, 12))
    }
    t.equal(({} as { connectionId?: unknown }).connectionId, undefined, 'nothing is polluted')
  })

  t.test(`${method} does not take its parameters from __proto__`, async (t) => {
    const client = await service.connect()
    const stored = await storedMessages(service)
    const params = `{"__proto__":${JSON.stringify(good(newConnectionId()))}}`
    const { error } = JSON.parse(await exchange(client, `{"jsonrpc":"2.0","id":1,"method":"${method}","params":${params}}`))
    checkRefusal(t, error, invalid('connectionId'), '__proto__')
    t.equal(await storedMessages(service), stored)
  })

  t.test(`${method} wants its parameters by name`, async (t) => {
    const client = await service.connect()
    const connectionId = newConnectionId()
    const stored = await storedMessages(service)
    for (const params of [[], [connectionId], [good(connectionId)], Object.values(good(connectionId))]) {
      checkRefusal(t, (await client.ask(method, params)).error, invalid('params'), 'an array')
    }
    checkRefusal(t, (await client.ask(method, undefined)).error, invalid('connectionId'), 'no params')
    t.equal(await client.call('ping'), 'pong')
    const [verb, path] = restTwin(method, { connectionId })!
    if (verb === 'POST' || verb === 'PUT') {
      for (const body of ['[]', JSON.stringify([good(connectionId)]), 'null', '"text"', '7', 'true']) {
        const { status, text } = await http(service, verb, path, body)
        t.equal(status, 400)
        checkRefusal(t, JSON.parse(text).error, invalid('body'), 'a body that is no object')
      }
    }
    t.equal(await storedMessages(service), stored)
  })
}

t.test('a method that does not exist is told apart from parameters that are wrong', async (t) => {
  const client = await service.connect()
  for (const method of ['takeFromqueue', 'constructor', '__proto__', 'toString', 'hasOwnProperty', 'rpc.unknown', '', 'addMessage ']) {
    checkRefusal(t, (await client.ask(method, { connectionId: 'x' })).error, { code: 'method_not_found' }, `method "${method}"`)
  }
  t.equal(await client.call('ping'), 'pong')
  for (const path of ['/v1', '/v1/', '/v1/connections', '/v1/connections/a', '/v1/connections/a/unknown', '/v1/__proto__', '/nothing']) {
    const { status, text } = await http(service, 'GET', path)
    t.equal(status, 404, path)
    checkRefusal(t, JSON.parse(text).error, { code: 'method_not_found' }, path)
  }
  const { status, text } = await http(service, 'PATCH', '/v1/connections/a/messages', '{}')
  t.equal(status, 404, 'a verb that is not served')
  checkRefusal(t, JSON.parse(text).error, { code: 'method_not_found' }, 'PATCH')
})

t.test('a frame or body that is no JSON is a parse error and the socket stays open', async (t) => {
  const client = await service.connect()
  const path = `/v1/connections/${newConnectionId()}/messages`
  const stored = await storedMessages(service)
  for (const bad of [
    '{',
    '{"a":1,}',
    'text',
    "{'a':1}",
    '{"a":"\n"}',
    '{"payload":{"a":NaN}}',
    '[1',
    '"\\x"',
    '{}{}',
    '\u0000',
    '\ufeff{}',
  ]) {
    const { error, id } = JSON.parse(await exchange(client, bad))
    checkRefusal(t, error, { code: 'parse_error' }, JSON.stringify(bad))
    t.equal(id, null)
    const { status, text } = await http(service, 'POST', path, bad)
    t.equal(status, 400)
    t.same(JSON.parse(text).error, error, 'the same over REST')
  }
  t.equal(await client.call('ping'), 'pong')
  t.equal(await storedMessages(service), stored)
})

t.test('an empty frame is a parse error', async (t) => {
  const client = await service.connect()
  checkRefusal(t, JSON.parse(await exchange(client, '')).error, { code: 'parse_error' }, 'the empty frame')
  t.equal(await client.call('ping'), 'pong')
})

t.test('a binary frame is refused with a reason and the socket stays open', async (t) => {
  const client = await service.connect()
  const stored = await storedMessages(service)
  const call = JSON.stringify({ jsonrpc: '2.0', id: 1, method: 'addMessage', params: message(newConnectionId()) })
  const { error, id } = JSON.parse(await exchange(client, Buffer.from(call)))
  checkRefusal(t, error, { code: 'invalid_request' }, 'the binary frame')
  t.match(error.message, /binary/)
  t.equal(id, null)
  t.equal(await client.call('ping'), 'pong')
  t.equal(await storedMessages(service), stored)
})

t.test('nesting beyond the limit names it', async (t) => {
  const client = await service.connect()
  const stored = await storedMessages(service)
  const connectionId = newConnectionId()
  // A payload that is `depth` levels deep; a frame is two levels deeper, a body one.
  const params = (depth: number) =>
    message(connectionId, 0, { payload: JSON.parse('{"a":'.repeat(depth - 1) + '{}' + '}'.repeat(depth - 1)) })
  const refusal: Refusal = { code: 'too_deep', limit: MAX.DEPTH }
  checkRefusal(t, JSON.parse(await exchange(client, frameOf(params(MAX.DEPTH - 1)))).error, refusal, 'a deep frame')
  checkRefusal(t, JSON.parse(await exchange(client, `[${frameOf(params(MAX.DEPTH - 2))}]`)).error, refusal, 'a deep batch')
  const { status, text } = await http(service, ...restTwin('addMessage', params(MAX.DEPTH))!)
  t.equal(status, 400)
  checkRefusal(t, JSON.parse(text).error, refusal, 'a deep body')
  checkRefusal(t, JSON.parse(await exchange(client, '['.repeat(16_000))).error, refusal, 'a frame of brackets')
  t.equal(await storedMessages(service), stored)
  t.equal(await client.call('ping'), 'pong')
  t.type(JSON.parse(await exchange(client, frameOf(params(MAX.DEPTH - 2)))).result, 'string', 'a frame at the limit is fine')
  t.equal((await http(service, ...restTwin('addMessage', params(MAX.DEPTH - 1))!)).status, 200, 'a body at the limit is fine')
})

t.test('a batch that is too long names the limit and nothing of it is stored', async (t) => {
  const client = await service.connect()
  const stored = await storedMessages(service)
  const { error, id } = JSON.parse(
    await exchange(
      client,
      `[${Array(MAX.BATCH + 1)
        .fill(frameOf(message(newConnectionId())))
        .join()}]`,
    ),
  )
  checkRefusal(t, error, { code: 'batch_too_long', limit: MAX.BATCH }, 'the batch')
  t.equal(id, null)
  t.equal(await client.call('ping'), 'pong')
  t.equal(await storedMessages(service), stored)
})

t.test('a bad call in a batch does not keep the good one from being stored', async (t) => {
  const client = await service.connect()
  const connectionId = newConnectionId()
  const replies = JSON.parse(await exchange(client, `[${frameOf({ connectionId, payload: {} })},1,${frameOf(message(connectionId))}]`))
  checkRefusal(t, replies[0].error, invalid('recipientDids'), 'the first')
  checkRefusal(t, replies[1].error, { code: 'invalid_request' }, 'the second')
  t.type(replies[2].result, 'string')
  t.equal((await storedPayloads(service, connectionId)).length, 1)
})

t.test('an oversize frame closes its socket with 1009, and no other', async (t) => {
  const client = await service.connect()
  const other = await service.connect()
  const stored = await storedMessages(service)
  const padding = ' '.repeat(MAX.FRAME_BYTES)
  t.type(JSON.parse(await exchange(client, frameOf(message(newConnectionId())).padEnd(MAX.FRAME_BYTES))).result, 'string', 'at the limit')
  const closed = once(client.socket, 'close') as Promise<[number]>
  client.socket.send(frameOf(message(newConnectionId())) + padding)
  t.equal((await closed)[0], 1009)
  t.equal(await other.call('ping'), 'pong')
  t.equal(await storedMessages(service), stored + 1)
})

t.test('an oversize body is refused with 413 and names the limit', async (t) => {
  const stored = await storedMessages(service)
  const path = `/v1/connections/${newConnectionId()}/messages`
  const body = (bytes: number) => JSON.stringify({ ...message('in the path'), connectionId: undefined }).padEnd(bytes)
  t.equal((await http(service, 'POST', path, body(MAX.FRAME_BYTES))).status, 200, 'at the limit')
  const { status, text } = await http(service, 'POST', path, body(MAX.FRAME_BYTES + 1))
  t.equal(status, 413)
  checkRefusal(t, JSON.parse(text).error, { code: 'payload_too_large', field: 'body', limit: MAX.FRAME_BYTES }, 'the body')
  t.equal(await storedMessages(service), stored + 1)
})

t.test('a frame that is not UTF-8 closes its socket with 1007', async (t) => {
  const client = await service.connect()
  const stored = await storedMessages(service)
  const closed = once(client.socket, 'close') as Promise<[number]>
  client.socket.send(notUtf8(frameOf(message(newConnectionId(), 0, { payload: 'X' }))), { binary: false })
  t.equal((await closed)[0], 1007)
  t.equal(await storedMessages(service), stored)
})

t.test('a body that is not UTF-8 is a parse error', async (t) => {
  const stored = await storedMessages(service)
  const body = notUtf8(JSON.stringify({ recipientDids: [DID], payload: 'X' }))
  const { status, text } = await http(service, 'POST', `/v1/connections/${newConnectionId()}/messages`, body)
  t.equal(status, 400)
  checkRefusal(t, JSON.parse(text).error, { code: 'parse_error' }, 'the body')
  t.match(JSON.parse(text).error.message, /UTF-8/)
  t.equal(await storedMessages(service), stored)
})

t.test('a body of another content type is refused by the name of the header', async (t) => {
  const stored = await storedMessages(service)
  const [verb, path, body] = restTwin('addMessage', message(newConnectionId()))!
  for (const contentType of [
    'text/plain',
    'application/x-www-form-urlencoded',
    'multipart/form-data; boundary=x',
    'application/xml',
    'json',
    '',
  ]) {
    const { status, text } = await http(service, verb, path, body, contentType)
    t.equal(status, errorTable.invalid_request.status, `content type "${contentType}"`)
    checkRefusal(t, JSON.parse(text).error, { code: 'invalid_request', field: 'content-type' }, `content type "${contentType}"`)
  }
  t.equal(await storedMessages(service), stored)
  for (const contentType of ['application/json; charset=utf-8', 'Application/JSON']) {
    t.equal((await http(service, verb, path, body, contentType)).status, 200, contentType)
  }
})

t.test('a call without the body that it needs names what is missing', async (t) => {
  for (const [verb, path, field] of [
    ['POST', 'messages', 'recipientDids'],
    ['POST', 'messages/remove', 'messageIds'],
    ['PUT', 'live-session', 'sessionId'],
  ] as const) {
    for (const body of [undefined, '', '{}']) {
      const { status, text } = await http(service, verb, `/v1/connections/${newConnectionId()}/${path}`, body)
      t.equal(status, 400)
      checkRefusal(t, JSON.parse(text).error, invalid(field), `${verb} ${path} with ${JSON.stringify(body)}`)
    }
  }
})

t.test('a query parameter that is given twice is refused', async (t) => {
  const { status, text } = await http(service, 'GET', '/v1/connections/a/messages/count?recipientDid=did:a&recipientDid=did:b')
  t.equal(status, 400)
  checkRefusal(t, JSON.parse(text).error, invalid('recipientDid'), 'twice')
})

t.test('the connectionId of the path wins over one in the body', async (t) => {
  const inPath = newConnectionId()
  const inBody = newConnectionId()
  await http(service, 'POST', `/v1/connections/${inPath}/messages`, JSON.stringify(message(inBody)))
  t.equal((await storedPayloads(service, inPath)).length, 1)
  t.equal((await storedPayloads(service, inBody)).length, 0)
})

t.test('rpc.on and rpc.off refuse what is no list of names, and survive names that are none', async (t) => {
  const client = await service.connect()
  for (const method of ['rpc.on', 'rpc.off']) {
    for (const params of [{}, { event: 'messagesReceived' }, undefined]) {
      checkRefusal(t, (await client.ask(method, params)).error, invalid('params'), method)
    }
    for (const params of [[1], [null], [{ toString: 1, valueOf: 1 }], [['messagesReceived']], ['__proto__']]) {
      const { result, error } = await client.ask(method, params)
      t.not(error?.data.code, 'internal_error', `${method} ${JSON.stringify(params)}`)
      t.notMatch(result, { messagesReceived: 'ok' }, 'a list is not a name')
    }
    t.same(await client.call(method, ['messagesReceived']), { messagesReceived: 'ok' })
  }
})

// Names that a path, a database or JavaScript may understand otherwise.
const ODD_IDS = [
  'a/b',
  '/',
  'a//b/',
  '.',
  '..',
  '../messages',
  '%',
  '100%25',
  'a%2Fb',
  'a b',
  'a+b',
  '?x=1&y=2',
  '#fragment',
  ';p=1',
  ':connectionId',
  '*',
  '\\',
  '"\'`',
  '{}',
  '\n\r\t',
  'ünïcode',
  'u\u0308',
  '\u00fc',
  '日本語',
  '\u{1f600}',
  '\u202e\u200b\ufeff',
  '\uffff',
  '\u{10ffff}',
  '\u0001\u007f',
  ' leading and trailing ',
  'did:peer:2.Ez6LS#key-1',
  '__proto__',
  'constructor',
  'messages',
  'x'.repeat(MAX_ID),
  '日'.repeat(MAX_ID),
  '\u{1f600}'.repeat(127),
]

t.test('every connectionId names the same queue in a path as in a call, and no other', async (t) => {
  const client = await service.connect()
  for (const [n, connectionId] of ODD_IDS.entries()) {
    const what = JSON.stringify(connectionId.slice(0, 20))
    const added = await http(service, ...restTwin('addMessage', message(connectionId, n))!)
    t.equal(added.status, 200, `${what}: added over REST`)
    t.equal((await client.ask('addMessage', message(connectionId, n))).error, undefined, `${what}: added over WebSocket`)
    if (added.status !== 200) continue
    const { payload } = message(connectionId, n)
    t.strictSame(await storedPayloads(service, connectionId), Array(2).fill(JSON.stringify(payload)), `${what}: stored under this name`)
    t.equal(await client.call('getAvailableMessageCount', { connectionId }), 2, `${what}: counted over WebSocket`)
    t.equal((await http(service, ...restTwin('getAvailableMessageCount', { connectionId })!)).text, '2', `${what}: counted over REST`)
    t.equal((await http(service, ...restTwin('addLiveSession', { connectionId, sessionId: connectionId })!)).text, 'true', `${what}: live`)
    t.equal(await client.call('removeLiveSession', { connectionId, sessionId: connectionId }), true, `${what}: no longer live`)
    t.equal((await http(service, ...restTwin('removeAllMessages', { connectionId, recipientDid: DID })!)).text, 'null')
    t.equal((await storedPayloads(service, connectionId)).length, 0, `${what}: removed`)
  }
})

t.test('every text parameter may have characters beyond the basic plane', async (t) => {
  const client = await service.connect()
  const odd = (name: string) => `${name} \u{1f600}\u{10ffff}`
  const connectionId = odd(newConnectionId())
  for (const [method, params] of [
    ['addMessage', message(connectionId)],
    ['addMessage', message(newConnectionId(), 0, { recipientDids: [odd('did')] })],
    ['addMessage', message(newConnectionId(), 0, { idempotencyKey: odd('key') })],
    ['addMessage', message(newConnectionId(), 0, { token: odd('token') })],
    ['takeFromQueue', { connectionId: newConnectionId(), recipientDid: odd('did') }],
    ['addLiveSession', { connectionId: newConnectionId(), sessionId: odd('session') }],
  ] as const) {
    t.equal((await client.ask(method, params)).error?.message, undefined, method)
  }
})

t.test('a receivedAt that is accepted comes back as the same moment, in ISO 8601 with a year of four digits', async (t) => {
  const client = await service.connect()
  for (const receivedAt of [
    '2026-01-31T12:00:00Z',
    '2026-01-31T12:00:00.123456789+05:30',
    '2024-02-29T24:00:00-14:00',
    '1900-01-01T00:00:00Z',
    '0001-01-02T00:00:00Z',
    '0001-01-01T00:00:00+14:00',
    '9999-12-31T23:59:59-14:00',
  ]) {
    const connectionId = newConnectionId()
    const { error } = await client.ask('addMessage', message(connectionId, 0, { receivedAt }))
    if (error) {
      checkRefusal(t, error, invalid('receivedAt'), receivedAt)
      continue
    }
    const [taken] = await client.call('takeFromQueue', { connectionId })
    t.match(taken.receivedAt, /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/, receivedAt)
    t.equal(Date.parse(taken.receivedAt), Date.parse(receivedAt), receivedAt)
  }
})

t.test('a connectionId in a path that is too long names the limit, however long it is', async (t) => {
  for (const connectionId of ['x'.repeat(256), '日'.repeat(256), 'x'.repeat(3_000), '日'.repeat(1_000), 'x'.repeat(12_000)]) {
    const { status, text } = await http(service, ...restTwin('getAvailableMessageCount', { connectionId })!)
    t.equal(status, 400, `${connectionId.length} characters`)
    checkRefusal(t, JSON.parse(text).error, invalid('connectionId', MAX_ID), `${connectionId.length} characters`)
  }
})

t.test('a path whose escapes are broken or are no UTF-8 gets an error of the table', async (t) => {
  const stored = await storedMessages(service)
  for (const escape of ['%', '%zz', '%E0%A4%A', '%ff', '%ED%A0%80', '%C0%80', 'a%']) {
    const { status, text } = await http(service, 'POST', `/v1/connections/${escape}/messages`, JSON.stringify(message('in the path')))
    t.equal(status, 400, escape)
    t.equal(JSON.parse(text).error?.data?.code, 'invalid_request', `${escape}: ${text}`)
  }
  t.equal(await storedMessages(service), stored)
})

t.test('a DID in a query may be as long as the limit', async (t) => {
  const connectionId = newConnectionId()
  const recipientDid = `did:peer:2.${'日'.repeat(5_000)}`
  const client = await roomy.connect()
  await client.call('addMessage', message(connectionId, 0, { recipientDids: [recipientDid] }))
  const path = `/v1/connections/${connectionId}/messages/count?recipientDid=${encodeURIComponent(recipientDid)}`
  t.equal((await http(roomy, 'GET', path)).text, '1')
  const longest = encodeURIComponent('d'.repeat(65_536))
  t.equal((await http(roomy, 'GET', `/v1/connections/${connectionId}/messages/count?recipientDid=${longest}`)).text, '0')
})

// JSON texts that a round trip through values would change.
const PAYLOADS = [
  '{ "b" : 1 ,\t"a":\n[ 1.0, 1e400, -0, 12345678901234567890, 0.1000000000000000055 ] }',
  '{"a":1,"a":2,"10":0,"2":0}',
  '"\\u0000 \\ud800 \\udc00\\ud83d \\u0041 \\/"',
  '{"\\u0000":"\\u0000","__proto__":{"x":1},"constructor":null,"payload":{"payload":[]}}',
  '{"text":"ünïcode 日本 \u{1f600} \u2028\u2029 \ufeff \\" \\\\ }],{["}',
  '"eyJhbGciOiJFQ0RILUVTIn0.a.b.c.d"',
  '{}',
  '" "',
]

const frameWith = (connectionId: string, payload: string) =>
  `{"jsonrpc":"2.0","id":1,"method":"addMessage","params":{"connectionId":"${connectionId}","payload":${payload},"recipientDids":["${DID}"]}}`
const bodyWith = (payload: string) => `{"recipientDids":["${DID}"],"payload":${payload}}`
const takeFrame = (connectionId: string) => `{"jsonrpc":"2.0","id":1,"method":"takeFromQueue","params":{"connectionId":"${connectionId}"}}`
const takenPayload = (text: string) => /"encryptedMessage":([^]*)\}\](?:,"id":1\})?$/.exec(text)?.[1]

t.test('a payload comes back to the byte, whichever way it came and goes', async (t) => {
  const client = await service.connect()
  for (const payload of PAYLOADS) {
    for (const add of [
      (id: string) => exchange(client, frameWith(id, payload)),
      async (id: string) => (await http(service, 'POST', `/v1/connections/${id}/messages`, bodyWith(payload))).text,
    ]) {
      const connectionId = newConnectionId()
      await add(connectionId)
      t.strictSame(await storedPayloads(service, connectionId), [payload], 'stored')
      t.equal(takenPayload(await exchange(client, takeFrame(connectionId))), payload, 'over WebSocket')
      t.equal(takenPayload((await http(service, 'POST', `/v1/connections/${connectionId}/messages/take`, '{}')).text), payload, 'over REST')
    }
  }
})

t.test('a payload that is delivered live comes to the byte', async (t) => {
  const client = await service.connect()
  const sender = await service.connect()
  for (const payload of PAYLOADS) {
    const connectionId = newConnectionId()
    await client.call('addLiveSession', { connectionId, sessionId: 's' })
    const next = once(client.socket, 'message') as Promise<[Buffer]>
    await exchange(sender, frameWith(connectionId, payload))
    const text = (await next)[0].toString()
    t.ok(text.includes(`"encryptedMessage":${payload}}]`), 'the frame has the text as it is')
  }
})

t.test('a payload of 5 MiB is taken and given back, and one byte more is refused', async (t) => {
  const client = await roomy.connect()
  const limit = 5 * 1024 * 1024
  // Quotes count, and characters count by their bytes: '日' has three.
  const payload = `"${'日'.repeat(1_747_625)}xxx"`
  t.equal(Buffer.byteLength(payload), limit)
  const larger = payload.replace('"', '"x')
  const refusal: Refusal = { code: 'payload_too_large', field: 'payload', limit }

  const overSocket = newConnectionId()
  t.type(JSON.parse(await exchange(client, frameWith(overSocket, payload))).result, 'string')
  checkRefusal(t, JSON.parse(await exchange(client, frameWith(overSocket, larger))).error, refusal, 'one byte more over WebSocket')

  const overRest = newConnectionId()
  const path = `/v1/connections/${overRest}/messages`
  t.equal((await http(roomy, 'POST', path, bodyWith(payload))).status, 200)
  const { status, text } = await http(roomy, 'POST', path, bodyWith(larger))
  t.equal(status, 413)
  checkRefusal(t, JSON.parse(text).error, refusal, 'one byte more over REST')

  for (const connectionId of [overSocket, overRest]) {
    t.equal((await storedPayloads(roomy, connectionId)).length, 1, 'what was refused is not stored')
    t.ok(takenPayload(await exchange(client, takeFrame(connectionId))) === payload, 'taken over WebSocket')
    const taken = await http(roomy, 'POST', `/v1/connections/${connectionId}/messages/take`, '{}')
    t.ok(takenPayload(taken.text) === payload, 'taken over REST')
  }
})

t.test('a frame of 8 MiB is read and one byte more closes the socket with 1009', async (t) => {
  const client = await roomy.connect()
  const limit = 8 * 1024 * 1024
  const ping = '{"jsonrpc":"2.0","id":1,"method":"ping"}'
  t.equal(JSON.parse(await exchange(client, ping.padEnd(limit))).result, 'pong')
  const closed = once(client.socket, 'close') as Promise<[number]>
  client.socket.send(ping.padEnd(limit + 1))
  t.equal((await closed)[0], 1009)
})

function frameOf(params: object): string {
  return JSON.stringify({ jsonrpc: '2.0', id: 1, method: 'addMessage', params })
}

/** The text with its X replaced by a byte that UTF-8 does not have. */
function notUtf8(text: string): Buffer {
  const bytes = Buffer.from(text)
  bytes[bytes.indexOf('X')] = 0xff
  return bytes
}
