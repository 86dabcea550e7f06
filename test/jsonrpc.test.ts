import t, { type Test } from 'tap'
import { CallError } from '../src/errors.js'
import { parseJson } from '../src/json.js'
import { createJsonRpc, type Method, type Reply } from '../src/jsonrpc.js'
import { mulberry32 } from './helpers/random.js'

const MAX_DEPTH = 6
const MAX_BATCH = 10

/** What methods were called with, and what was logged. */
interface Seen {
  calls: { method: string; params: any; payload: string | undefined }[]
  errors: { error: unknown; method: string }[]
}

function createService(dialect?: (method: string, value: unknown) => string | undefined) {
  const seen: Seen = { calls: [], errors: [] }
  const method = (name: string, answer: (params: any) => unknown): [string, Method] => [
    name,
    {
      run(params, payload, _caller, ended) {
        seen.calls.push({ method: name, params, payload: payload?.toString() })
        const answered = (async () => answer(params))()
        answered.then((value) => ended(undefined, { value, text: JSON.stringify(value) }), ended)
      },
    },
  ]
  const methods = new Map([
    method('subtract', (params) => (Array.isArray(params) ? params[0] - params[1] : params.minuend - params.subtrahend)),
    method('sum', (numbers: number[]) => numbers.reduce((a, b) => a + b, 0)),
    method('update', () => null),
    method('notify_hello', () => null),
    method('notify_sum', () => null),
    method('get_data', () => ['hello', 5]),
    method('echo', (params) => params),
    method('refuse', () => {
      throw new CallError('quota_exceeded', 'The queue is full.', { limit: 3 })
    }),
    method('break', () => {
      throw new Error('connection to postgres://user:secret@db failed')
    }),
    method('break oddly', () => {
      // eslint-disable-next-line @typescript-eslint/only-throw-error
      throw 'secret'
    }),
  ])
  const answer = createJsonRpc({
    methods,
    maxDepth: MAX_DEPTH,
    maxBatch: MAX_BATCH,
    onError: (error, method) => seen.errors.push({ error, method }),
    ...(dialect ? { dialect } : {}),
  })
  const ask = (text: string) =>
    new Promise<string | undefined>((resolve, reject) => {
      let told = 1
      const reply: Reply = (text, calls) => (calls === told ? resolve(text) : reject(new Error(`${calls} calls, told were ${told}`)))
      answer(Buffer.from(text), {}, reply, (calls) => (told = calls))
    })
  return { seen, answer: ask }
}

/** The answer without the words of an error, of which the specification fixes only the code. Checks the form of every reply. */
async function ask(t: Test, text: string, service = createService()): Promise<any> {
  const reply = await service.answer(text)
  if (reply === undefined) return undefined
  const parsed = JSON.parse(reply) as unknown
  return Array.isArray(parsed) ? parsed.map((one) => wellFormed(t, one)) : wellFormed(t, parsed)
}

function wellFormed(t: Test, reply: any): object {
  const { error } = reply
  t.equal(reply.jsonrpc, '2.0')
  t.ok('id' in reply, 'a reply has an id')
  t.notSame('result' in reply, 'error' in reply, 'exactly one of result and error')
  if (!error) return reply
  t.type(error.message, 'string')
  t.type(error.data.code, 'string')
  t.type(error.data.retryable, 'boolean')
  return { ...reply, error: { code: error.code } }
}

const result = (value: unknown, id: unknown) => ({ jsonrpc: '2.0', result: value, id })
const error = (code: number, id: unknown) => ({ jsonrpc: '2.0', error: { code }, id })

// [JSON-RPC 7] Every example, in its order and with its text.
const EXAMPLES: [name: string, request: string, answer: unknown][] = [
  ['positional parameters', '{"jsonrpc": "2.0", "method": "subtract", "params": [42, 23], "id": 1}', result(19, 1)],
  ['positional parameters, the other way', '{"jsonrpc": "2.0", "method": "subtract", "params": [23, 42], "id": 2}', result(-19, 2)],
  ['named parameters', '{"jsonrpc": "2.0", "method": "subtract", "params": {"subtrahend": 23, "minuend": 42}, "id": 3}', result(19, 3)],
  [
    'named parameters in another order',
    '{"jsonrpc": "2.0", "method": "subtract", "params": {"minuend": 42, "subtrahend": 23}, "id": 4}',
    result(19, 4),
  ],
  ['a notification', '{"jsonrpc": "2.0", "method": "update", "params": [1,2,3,4,5]}', undefined],
  ['a notification of a method that does not exist', '{"jsonrpc": "2.0", "method": "foobar"}', undefined],
  ['a method that does not exist', '{"jsonrpc": "2.0", "method": "foobar", "id": "1"}', error(-32601, '1')],
  ['invalid JSON', '{"jsonrpc": "2.0", "method": "foobar, "params": "bar", "baz]', error(-32700, null)],
  ['an invalid request', '{"jsonrpc": "2.0", "method": 1, "params": "bar"}', error(-32600, null)],
  [
    'a batch of invalid JSON',
    '[\n  {"jsonrpc": "2.0", "method": "sum", "params": [1,2,4], "id": "1"},\n  {"jsonrpc": "2.0", "method"\n]',
    error(-32700, null),
  ],
  ['an empty batch', '[]', error(-32600, null)],
  ['an invalid batch that is not empty', '[1]', [error(-32600, null)]],
  ['an invalid batch of three', '[1,2,3]', [error(-32600, null), error(-32600, null), error(-32600, null)]],
  [
    'a mixed batch',
    `[
        {"jsonrpc": "2.0", "method": "sum", "params": [1,2,4], "id": "1"},
        {"jsonrpc": "2.0", "method": "notify_hello", "params": [7]},
        {"jsonrpc": "2.0", "method": "subtract", "params": [42,23], "id": "2"},
        {"foo": "boo"},
        {"jsonrpc": "2.0", "method": "foo.get", "params": {"name": "myself"}, "id": "5"},
        {"jsonrpc": "2.0", "method": "get_data", "id": "9"}
    ]`,
    [result(7, '1'), result(19, '2'), error(-32600, null), error(-32601, '5'), result(['hello', 5], '9')],
  ],
  [
    'a batch of notifications only',
    '[{"jsonrpc": "2.0", "method": "notify_sum", "params": [1,2,4]}, {"jsonrpc": "2.0", "method": "notify_hello", "params": [7]}]',
    undefined,
  ],
]

t.test('the examples of the specification are answered as it says', async (t) => {
  for (const [name, request, answer] of EXAMPLES) t.strictSame(await ask(t, request), answer, name)
})

t.test('a notification is executed', async (t) => {
  const service = createService()
  await ask(t, '[{"jsonrpc":"2.0","method":"update","params":[1]},{"jsonrpc":"2.0","method":"notify_hello"}]', service)
  t.strictSame(
    service.seen.calls.map(({ method }) => method),
    ['update', 'notify_hello'],
  )
})

t.test('a notification that fails is not answered', async (t) => {
  for (const method of ['refuse', 'break']) t.equal(await ask(t, `{"jsonrpc":"2.0","method":"${method}"}`), undefined, method)
})

t.test('the id comes back with the value and type that it had', async (t) => {
  for (const id of ['0', '""', 'null', '1', '-1', '1.5', '"1"', '"id"', '"\\ud83d\\ude00"', '9007199254740991', '-9007199254740991']) {
    const reply = await createService().answer(`{"jsonrpc":"2.0","method":"get_data","id":${id}}`)
    t.strictSame(JSON.parse(reply!), result(['hello', 5], JSON.parse(id)), id)
  }
})

t.test('an id that a double cannot hold comes back digit by digit', async (t) => {
  for (const id of ['9007199254740993', '12345678901234567890', '1e400', '0.10000000000000000001']) {
    const reply = await createService().answer(`{"jsonrpc":"2.0","method":"get_data","id":${id}}`)
    t.ok(reply!.endsWith(`"id":${id}}`), `${id}: ${reply}`)
  }
})

t.test('an error has the id of its call', async (t) => {
  for (const id of [0, '', null, 'id'])
    t.strictSame(await ask(t, JSON.stringify({ jsonrpc: '2.0', method: 'foobar', id })), error(-32601, id))
})

t.test('an id of another type is an invalid request', async (t) => {
  for (const id of ['true', '{}', '[]', '[1]']) {
    t.strictSame(await ask(t, `{"jsonrpc":"2.0","method":"get_data","id":${id}}`), error(-32600, null), id)
  }
})

t.test('a request without jsonrpc "2.0" is invalid', async (t) => {
  const service = createService()
  for (const version of ['', '"jsonrpc":"1.0",', '"jsonrpc":2.0,', '"jsonrpc":"2",', '"jsonrpc":null,', '"JSONRPC":"2.0",']) {
    t.strictSame(await ask(t, `{${version}"method":"get_data","id":1}`, service), error(-32600, 1), version || 'missing')
  }
  t.strictSame(service.seen.calls, [], 'nothing was executed')
})

t.test('a request without a method, or whose method is no string, is invalid', async (t) => {
  for (const method of ['', '"method":1,', '"method":null,', '"method":["get_data"],', '"method":{},']) {
    t.strictSame(await ask(t, `{"jsonrpc":"2.0",${method}"id":1}`), error(-32600, 1), method || 'missing')
  }
})

t.test('params must be an object or an array', async (t) => {
  for (const params of ['null', '1', '"text"', 'true']) {
    t.strictSame(await ask(t, `{"jsonrpc":"2.0","method":"echo","params":${params},"id":1}`), error(-32600, 1), params)
  }
})

t.test('what is no call at all is an invalid request', async (t) => {
  for (const text of ['1', 'null', 'true', '"text"', '{}']) t.strictSame(await ask(t, text), error(-32600, null), text)
})

t.test('what is no JSON is a parse error', async (t) => {
  for (const text of [
    '',
    ' ',
    '{',
    '[',
    '"',
    '{"a":}',
    "{'a':1}",
    '{"a":1,}',
    '[1,]',
    'NaN',
    '{"a":1}{"a":1}',
    '"\u0000"',
    '\ufeff{}',
    '"\\x"',
    '01',
  ]) {
    t.strictSame(await ask(t, text), error(-32700, null), JSON.stringify(text))
  }
})

t.test('a batch within a batch is an invalid request', async (t) => {
  t.strictSame(await ask(t, '[[{"jsonrpc":"2.0","method":"get_data","id":1}]]'), [error(-32600, null)])
})

t.test('a method is found by its own name only', async (t) => {
  for (const method of ['__proto__', 'constructor', 'toString', 'hasOwnProperty', 'get', '', 'Get_data', 'get_data ']) {
    t.strictSame(await ask(t, JSON.stringify({ jsonrpc: '2.0', method, id: 1 })), error(-32601, 1), method)
  }
})

t.test('a very long method name is not sent back whole', async (t) => {
  const reply = await createService().answer(JSON.stringify({ jsonrpc: '2.0', method: 'x'.repeat(100_000), id: 1 }))
  t.ok(reply!.length < 500)
})

t.test('an error meant for the caller goes out with its code, name and limit', async (t) => {
  const service = createService()
  t.strictSame(JSON.parse((await service.answer('{"jsonrpc":"2.0","method":"refuse","id":1}'))!), {
    jsonrpc: '2.0',
    error: { code: -32001, message: 'The queue is full.', data: { code: 'quota_exceeded', retryable: false, limit: 3 } },
    id: 1,
  })
  t.strictSame(service.seen.errors, [], 'it is not the fault of the service')
})

t.test('an internal error is logged and its text does not leave the process', async (t) => {
  for (const method of ['break', 'break oddly']) {
    const service = createService()
    const reply = await service.answer(JSON.stringify({ jsonrpc: '2.0', method, id: 1 }))
    const { code, data } = JSON.parse(reply!).error
    t.equal(code, -32603)
    t.equal(data.code, 'internal_error')
    t.notMatch(reply, /secret|postgres/)
    t.match(String(service.seen.errors[0]!.error), 'secret', 'the log has it')
    t.equal(service.seen.errors[0]!.method, method)
  }
})

t.test('an internal error of a notification is logged too', async (t) => {
  const service = createService()
  await service.answer('{"jsonrpc":"2.0","method":"break"}')
  t.equal(service.seen.errors.length, 1)
})

t.test('one failure of a batch leaves the others their results', async (t) => {
  const batch = ['get_data', 'break', 'refuse', 'get_data'].map((method, id) => ({ jsonrpc: '2.0', method, id }))
  t.strictSame(await ask(t, JSON.stringify(batch)), [result(['hello', 5], 0), error(-32603, 1), error(-32001, 2), result(['hello', 5], 3)])
})

t.test('a batch of maxBatch calls is answered and one more call is refused without executing any', async (t) => {
  const batch = (size: number) => JSON.stringify(Array.from({ length: size }, (_, id) => ({ jsonrpc: '2.0', method: 'get_data', id })))
  t.equal((await ask(t, batch(MAX_BATCH))).length, MAX_BATCH)
  const service = createService()
  const reply = JSON.parse((await service.answer(batch(MAX_BATCH + 1)))!)
  t.equal(reply.error.code, -32600)
  t.same(reply.error.data, { code: 'batch_too_long', retryable: false, limit: MAX_BATCH })
  t.match(reply.error.message, String(MAX_BATCH))
  t.equal(reply.id, null)
  t.strictSame(service.seen.calls, [])
})

/** A call that is `levels` deep itself. */
const deepCall = (levels: number) => `{"jsonrpc":"2.0","method":"echo","params":${'['.repeat(levels - 1)}${']'.repeat(levels - 1)},"id":1}`

t.test('a call nested maxDepth deep is answered and one level more is refused', async (t) => {
  t.equal((await ask(t, deepCall(MAX_DEPTH))).id, 1)
  const service = createService()
  const reply = JSON.parse((await service.answer(deepCall(MAX_DEPTH + 1)))!)
  t.equal(reply.error.code, -32600)
  t.same(reply.error.data, { code: 'too_deep', retryable: false, limit: MAX_DEPTH })
  t.equal(reply.id, null)
  t.strictSame(service.seen.calls, [])
})

t.test('the depth counts inside a batch too', async (t) => {
  t.equal((await ask(t, `[${deepCall(MAX_DEPTH - 1)}]`))[0].id, 1)
  t.strictSame(await ask(t, `[${deepCall(2)},${deepCall(MAX_DEPTH)}]`), error(-32600, null))
})

t.test('brackets inside strings are no depth', async (t) => {
  const params = { text: '[{'.repeat(50), '[[[[[[[[[{"': '\\"[[[[[[[[[[' }
  t.strictSame((await ask(t, JSON.stringify({ jsonrpc: '2.0', method: 'echo', params, id: 1 }))).result, params)
})

t.test('nesting a million deep is refused before it is parsed', async (t) => {
  const deep = '['.repeat(1_000_000)
  t.strictSame(await ask(t, deep), error(-32600, null))
  t.strictSame(await ask(t, `{"jsonrpc":"2.0","method":"echo","params":${'{"a":'.repeat(1_000_000)}`), error(-32600, null))
})

t.test('a dialect rewrites the results it knows and leaves errors and the rest', async (t) => {
  const service = createService((method, value) => (method === 'get_data' ? JSON.stringify({ data: value }) : undefined))
  t.strictSame(await ask(t, '{"jsonrpc":"2.0","method":"get_data","id":1}', service), result({ data: ['hello', 5] }, 1))
  t.strictSame(await ask(t, '{"jsonrpc":"2.0","method":"sum","params":[1,2],"id":1}', service), result(3, 1))
  t.strictSame(await ask(t, '{"jsonrpc":"2.0","method":"refuse","id":1}', service), error(-32001, 1))
})

t.test('an answer that cannot be written is an error, and is told of', async (t) => {
  const failing = createService(() => {
    throw new Error('as a dialect may')
  })
  t.strictSame(await ask(t, '{"jsonrpc":"2.0","method":"sum","params":[1,2],"id":1}', failing), error(-32603, 1))
  t.match(failing.seen.errors, [{ method: 'sum' }])

  const long = createService(() => `"${'x'.repeat(300_000_000)}"`) // two of them are longer than a string may be
  const call = '{"jsonrpc":"2.0","method":"update","id":1}'
  t.strictSame(await ask(t, `[${call},${call}]`, long), error(-32603, null))
  t.match(long.seen.errors, [{ method: 'batch' }])
})

t.test('each call of a batch gets the text of its own payload', async (t) => {
  const service = createService()
  const call = (params: string) => `{"jsonrpc":"2.0","method":"echo","params":${params},"id":1}`
  await service.answer(
    `[${call('{"payload": {"n": 1.0}}')}, 7, ${call('{"a":[1,2]}')},${call('[{"payload":{}}]')},${call('{"payload":"x"}')}]`,
  )
  t.strictSame(
    service.seen.calls.map(({ payload }) => payload),
    ['{"n": 1.0}', undefined, undefined, '"x"'],
  )
})

// What must come out as it went in, although a round through values would change it.
const PAYLOADS = [
  '{}',
  '{ }',
  '"text"',
  '""',
  '{"n":12345678901234567890}',
  '{"n":1e400,"m":-1e400,"o":1.0,"p":1E+2,"q":-0,"r":0.1000000000000000055}',
  '{"b":1,"a":2,"10":3,"9":4}',
  '{"a":1,"a":2}',
  '{\n\t"a" : [ 1 , 2 ]\r\n}',
  '"\\u0000"',
  '{"\\u0000":"\\u0000"}',
  '"\\ud800"',
  '{"lone":"\\udc00\\ud800"}',
  '{"__proto__":{"polluted":true},"constructor":{"prototype":1}}',
  '{"payload":{"payload":1},"params":{"payload":2}}',
  '{"a":"}],{[\\"\\\\","\\"}":"\\\\\\\\"}',
  '"\\\\\\""',
  '"\\u0041\\/\\b\\f\\n\\r\\t"',
  '{"text":"ünïcode 日本 \u{1f600} \u2028\u2029 \u00a0\ufeff"}',
  '[[[1]],[],{}]',
  'null',
  'true',
  '-1.5e-7',
]

/** As the frame or body of this text is parsed; payloads as text. */
function parse(text: string, maxDepth: number, shape: 'rpc' | 'body') {
  const { value, texts } = parseJson(Buffer.from(text), maxDepth, shape)
  return { value, texts: texts.map(({ payload, id }) => ({ payload: payload?.toString(), id })) }
}

const SHAPES: [name: string, shape: 'rpc' | 'body', place: number, wrap: (payload: string) => string][] = [
  ['a call', 'rpc', 0, (payload) => `{"jsonrpc":"2.0","method":"m","params":{"payload":${payload}},"id":1}`],
  ['a call with spaces', 'rpc', 0, (payload) => ` { "params" : { "a" : "b" , "payload" :\n\t ${payload} \r\n, "c" : [ 1 ] } } `],
  ['a batch', 'rpc', 2, (payload) => `[1, {"params":{"payload":"first"}}, {"method":"m","params":{"a":{"x":1},"payload":${payload}}}]`],
  ['a body', 'body', 0, (payload) => `{"recipientDids":["a,b","payload"],"payload":${payload},"token":"x"}`],
]

t.test('the text of a payload is kept to the byte', async (t) => {
  for (const [name, shape, place, wrap] of SHAPES) {
    for (const payload of PAYLOADS) {
      const text = wrap(payload)
      const { value, texts } = parse(text, 64, shape)
      t.equal(texts[place]?.payload, payload, `in ${name}`) // not named after the payload: TAP would read it
      t.equal(JSON.stringify(value), JSON.stringify(JSON.parse(text)), 'the value is that of JSON.parse')
    }
  }
})

const payloadsOf = (text: string, shape: 'rpc' | 'body' = 'rpc') =>
  Object.fromEntries(parse(text, 64, shape).texts.flatMap(({ payload }, place) => (payload === undefined ? [] : [[place, payload]])))

t.test('of two payloads in one object the last wins, as in JSON.parse', async (t) => {
  t.strictSame(payloadsOf('{"params":{"payload":{"a":1},"payload":{"b":2}}}'), { 0: '{"b":2}' })
  t.strictSame(payloadsOf('{"payload":{"a":1},"payload":"b"}', 'body'), { 0: '"b"' })
  t.strictSame(payloadsOf('{"params":{"payload":1},"params":{"payload":2}}'), { 0: '2' })
  t.strictSame(payloadsOf('[{},{"params":{"payload":1},"params":{"payload":2}}]'), { 1: '2' })
})

t.test('a key that is written with escapes is the same key', async (t) => {
  t.strictSame(payloadsOf('{"params":{"pay\\u006coad":{"a":1}}}'), { 0: '{"a":1}' })
  t.strictSame(payloadsOf('{"p\\u0061rams":{"\\u0070ayload":1}}'), { 0: '1' })
  t.strictSame(payloadsOf('{"params":{"payload":1,"pay\\u006coad":2}}'), { 0: '2' })
  t.strictSame(payloadsOf('{"params":{"pay\\\\u006coad":1,"payload ":2}}'), {})
})

t.test('a payload anywhere else is not the payload', async (t) => {
  for (const text of [
    '{"payload":1}',
    '{"params":["payload",{"payload":1}]}',
    '{"params":[{"payload":1}]}',
    '{"params":{"a":{"payload":1}}}',
    '{"params":{"a":["payload",":",1]}}',
    '{"params":{"a":"payload","b":1}}',
    '{"other":{"payload":1}}',
    '{"x":{"params":{"payload":1}}}',
    '["params",{"payload":1}]',
    '[{"payload":1}]',
    '{"params":"payload","id":1}',
    '{"__proto__":{"payload":1}}',
  ]) {
    t.strictSame(payloadsOf(text), {}, text)
  }
  for (const text of ['{"a":{"payload":1}}', '{"params":{"payload":1}}', '["payload",1]']) t.strictSame(payloadsOf(text, 'body'), {}, text)
})

t.test('a payload after nested ones of the same name is still found', async (t) => {
  const text = '{"params":{"a":{"payload":{"params":{"payload":0}}},"b":["payload"],"payload":{"payload":[{"payload":1}]}}}'
  t.strictSame(payloadsOf(text), { 0: '{"payload":[{"payload":1}]}' })
})

t.test('a __proto__ key is data and pollutes nothing', async (t) => {
  const { value } = parse('{"params":{"__proto__":{"polluted":true},"constructor":{"prototype":{"polluted":true}}}}', 64, 'rpc')
  t.ok(Object.hasOwn((value as { params: object }).params, '__proto__'))
  t.equal(({} as { polluted?: unknown }).polluted, undefined)
  t.equal((value as { params: { polluted?: unknown } }).params.polluted, undefined)
})

t.test('invalid JSON is a parse error, whatever it breaks off in', async (t) => {
  const text = '[{"jsonrpc":"2.0","params":{"payload":{"a":"\\"\\\\","b":[1,{"c":null}]}},"id":1}]'
  for (let end = 0; end < text.length; end++) {
    t.throws(() => parse(text.slice(0, end), 64, 'rpc'), { code: 'parse_error' }, text.slice(0, end))
  }
})

/** The same seed gives the same numbers, so a failure can be repeated. */
function createRandom(seed: number) {
  const next = mulberry32(seed)
  const below = (limit: number) => Math.floor(next() * limit)
  const pick = <T>(items: readonly T[]): T => items[below(items.length)]!
  const times = <T>(limit: number, make: () => T): T[] => Array.from({ length: below(limit) }, make)
  return { below, pick, times }
}

type Random = ReturnType<typeof createRandom>

const PIECES = [
  'a',
  '{',
  '}',
  '[',
  ']',
  ',',
  ':',
  ' ',
  '\\"',
  '\\\\',
  '\\/',
  '\\n',
  '\\u0000',
  '\\ud800',
  '\\udc00',
  '\\u006c',
  'é',
  '\u{1f600}',
  'payload',
  'params',
]
const KEYS = ['"payload"', '"pay\\u006coad"', '"params"', '"p\\u0061rams"', '"__proto__"', '"constructor"', '""', '"id"', '"10"', '"2"']
const NUMBERS = ['0', '-0', '1', '-1.5', '1e400', '1E-7', '12345678901234567890', '0.1000000000000000055']

const space = ({ pick }: Random) => pick(['', '', '', ' ', '\n', '\t ', '\r\n'])
const randomString = (random: Random) => `"${random.times(6, () => random.pick(PIECES)).join('')}"`

/** JSON text of a random value, in a random spelling. */
function randomJson(random: Random, depth: number): string {
  const { below, pick, times } = random
  const kind = below(depth > 0 ? 6 : 3)
  if (kind === 0) return pick(NUMBERS)
  if (kind === 1) return randomString(random)
  if (kind === 2) return pick(['true', 'false', 'null'])
  const pad = (text: string) => space(random) + text + space(random)
  if (kind === 3) return `[${times(4, () => pad(randomJson(random, depth - 1))).join(',') || space(random)}]`
  const key = () => (below(3) > 0 ? pick(KEYS) : randomString(random))
  return `{${times(5, () => pad(key()) + ':' + pad(randomJson(random, depth - 1))).join(',') || space(random)}}`
}

/** The payloads that JSON.parse sees, written as JSON again. */
function expectedPayloads(value: unknown, shape: 'rpc' | 'body'): Map<number, string> {
  const isObject = (it: unknown): it is Record<string, unknown> => typeof it === 'object' && it !== null && !Array.isArray(it)
  const found = new Map<number, string>()
  const look = (params: unknown, place: number) => {
    if (isObject(params) && Object.hasOwn(params, 'payload')) found.set(place, JSON.stringify(params.payload))
  }
  if (shape === 'body') look(value, 0)
  else
    for (const [place, call] of (Array.isArray(value) ? value : [value]).entries())
      if (isObject(call) && Object.hasOwn(call, 'params')) look(call.params, place)
  return found
}

/** @returns what is wrong with how parseJson understands `text`, or undefined */
function disagreement(made: string, shape: 'rpc' | 'body'): string | undefined {
  const text = Buffer.from(made).toString() // bytes that are UTF-8 have no lone surrogates
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch {
    try {
      parse(text, 64, shape)
      return 'accepted, although it is not JSON'
    } catch (error) {
      return error instanceof CallError && error.code === 'parse_error' ? undefined : `threw ${String(error)}`
    }
  }
  const parsed = parse(text, 64, shape)
  if (JSON.stringify(parsed.value) !== JSON.stringify(value)) return 'another value'
  for (const [place, payload] of expectedPayloads(value, shape)) {
    const found = parsed.texts[place]?.payload
    if (found === undefined) return `the payload at ${place} was not found`
    if (!text.includes(found) || found !== found.trim()) return `the payload at ${place} is not the text that came in: ${found}`
    if (JSON.stringify(JSON.parse(found)) !== payload) return `the payload at ${place} is another: ${found}`
  }
  return undefined
}

t.test('random JSON is understood as JSON.parse understands it', async (t) => {
  const seed = process.env.SEED ? Number(process.env.SEED) : Math.floor(Math.random() * 2 ** 32)
  t.comment(`SEED=${seed} repeats this run`)
  const random = createRandom(seed)
  const failures: string[] = []
  let withPayload = 0
  let broken = 0
  for (let n = 0; n < 20_000 && failures.length === 0; n++) {
    const shape = random.pick(['rpc', 'body'] as const)
    let text = randomJson(random, 2)
    if (random.below(4) > 0) {
      const params = `{${random.pick(KEYS)}:${text},${random.pick(KEYS)}:${randomJson(random, 3)}}`
      text = shape === 'body' ? params : `{"id":1,${random.pick(['"params"', '"p\\u0061rams"', '"x"'])}:${params}}`
      if (random.below(3) === 0) text = `[${randomJson(random, 2)},${space(random)}${text}]`
    }
    if (random.below(4) === 0) {
      const at = random.below(text.length + 1)
      text = text.slice(0, at) + random.pick([...PIECES, '"', '\\', '']) + text.slice(at + random.below(2))
    }
    const problem = disagreement(text, shape)
    if (problem) failures.push(`seed ${seed}, ${shape}: ${problem} in ${text}`)
    try {
      if (expectedPayloads(JSON.parse(text), shape).size > 0) withPayload++
    } catch {
      broken++
    }
  }
  t.strictSame(failures, [])
  t.ok(withPayload > 2_000 && broken > 1_000, `the generator makes what is to be tested: ${withPayload} with payload, ${broken} broken`)
})
