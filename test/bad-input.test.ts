import { once } from 'node:events'
import { request } from 'node:http'
import pg from 'pg'
import t, { type Test } from 'tap'
import type { OperationName } from '../src/contract.js'
import { errorTable, type ErrorName } from '../src/errors.js'
import { DID, message, newConnectionId, startService, type Service, type TestSocket } from './helpers/service.js'

const MAX = { PAYLOAD_BYTES: 1_000, FRAME_BYTES: 4_096, DEPTH: 8, BATCH: 3, DID_LENGTH: 100, RECIPIENT_DIDS: 3, MESSAGE_IDS: 3 }
const MAX_ID = 255

const service = await startService(t, Object.fromEntries(Object.entries(MAX).map(([name, value]) => [`MAX_${name}`, String(value)])))
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
  const [verb, url] = service.app.pickup.contract[method].http.split(' ') as [string, string]
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
  if (field && field !== 'body') t.match(error?.message, field, `${what}: the message names the field`)
  if (limit !== undefined) t.match(error?.message, String(limit), `${what}: the message names the limit`)
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
const connectionCases: Case[] = [missing('connectionId'), ...textCases('connectionId', MAX_ID), ...wrongTypes('connectionId', [true, ['a']])]
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
        '9999-12-31T23:59:59-14:00',
        'Sat, 31 Jan 2026 12:00:00 GMT',
        '2026-01-31T12:00:00Z\u0000',
      ]),
      ['too long receivedAt', { receivedAt: `2026-01-31T12:00:00.${'0'.repeat(64)}Z` }, invalid('receivedAt', 64)],
      ...textCases('idempotencyKey', 128),
      ...textCases('token', 4_096 / 4).map(([what, change, refusal]): Case => {
        if (refusal.limit === undefined || refusal.limit === 1) return [what, change, refusal]
        return [what, { token: 'x'.repeat(4_097) }, invalid('token', 4_096)]
      }),
      ...wrongTypes('pushNotificationToken', ['text', null, []]),
      ['push token without type', { pushNotificationToken: { token: 'x' } }, invalid('pushNotificationToken.type')],
      ['push token without token', { pushNotificationToken: { type: 'fcm' } }, invalid('pushNotificationToken.token')],
      ['push token with NUL', { pushNotificationToken: { type: 'fcm', token: '\u0000' } }, invalid('pushNotificationToken.token')],
      ['push token of a long type', { pushNotificationToken: { type: 'x'.repeat(33), token: 'x' } }, invalid('pushNotificationToken.type', 32)],
    ],
  },
  takeFromQueue: {
    good: (connectionId) => ({ connectionId }),
    cases: [...recipientDidCases, ...positive('limit'), ...positive('limitBytes'), ...wrongTypes('deleteMessages', ['true', 1, 0, null, {}])],
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
}

for (const method of Object.keys(CASES) as OperationName[]) {
  const { good, cases } = CASES[method]

  t.test(`${method} names the parameter that is wrong and the limit that was passed`, async (t) => {
    const client = await (method === 'addMessage' ? roomyFrames(t) : service.connect())
    for (const [what, change, refusal] of [...connectionCases, ...cases]) {
      await refuses(t, client, method, { ...good(newConnectionId()), ...change }, refusal, what)
    }
  })

  t.test(`${method} ignores parameters that it does not know, also __proto__ and constructor`, async (t) => {
    const client = await service.connect()
    const params = JSON.stringify(good(newConnectionId())).slice(0, -1)
    const frame = (more: string) => `{"jsonrpc":"2.0","id":"x","method":"${method}","params":${params},${more}}}`
    for (const more of ['"__proto__":{"connectionId":7}', '"constructor":{"prototype":{}}', '"toString":null,"hasOwnProperty":1', '"unknown":[]']) {
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

/** Strings at the limits of addMessage are longer than what the small frames hold in another script; those stay below. */
async function roomyFrames(_t: Test): Promise<TestSocket> {
  return service.connect()
}
