import { createHmac } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { readCredentials } from '../plugins/push/credentials.js'
import { parseRetryAfter } from '../plugins/push/fcm.js'
import { tryPush } from '../plugins/push/try.js'
import { readConfig } from '../src/config.js'
import { ACCEPTED, refusal, startFcm, UNREGISTERED, type Answer } from './helpers/fcm.js'
import { onDatabase as queryOn } from './helpers/postgres.js'
import { startServer } from './helpers/process.js'
import { connect, DID, message, newConnectionId, startService, testDatabase, type Service } from './helpers/service.js'
import { until } from './helpers/until.js'

/* The real firebase-admin against a stand-in for FCM on this machine (test/helpers/fcm.ts). */

const WINDOW_MS = 600
const TIMEOUT_MS = 1_000
const fcm = await startFcm(t)
const quick = { PUSH_WINDOW_MS: String(WINDOW_MS), PUSH_TIMEOUT_MS: String(TIMEOUT_MS), PUSH_RETRY_MS: '100' }
const databaseUrl = await testDatabase(t)
const start = (t: Test, settings: Record<string, string> = {}) =>
  startService(t, { DATABASE_URL: databaseUrl, ...fcm.settings, ...quick, ...settings })

let tokens = 0
const newToken = () => `registration-token-${++tokens}`
const withToken = (connectionId: string, token: string, n = 0) =>
  message(connectionId, n, { pushNotificationToken: { type: 'fcm', token } })

/** Longer than the window and the poll that ends it: a second push would have come by then. */
const untilQuiet = () => sleep(WINDOW_MS + 1_700)

const onDatabase = (statement: string, url = databaseUrl) => queryOn(url, statement)

t.test('with two instances', async (t) => {
  const a = await start(t)
  const b = await start(t)
  const [atA, atB] = [await a.connect(), await b.connect()]

  t.test('a hundred messages in the window send one push, with nothing in it but the text of the configuration', async (t) => {
    const [token, connectionId] = [newToken(), newConnectionId()]
    await Promise.all(Array.from({ length: 100 }, (_, n) => (n % 2 ? atA : atB).call('addMessage', withToken(connectionId, token, n))))
    const [push] = await fcm.came(token)
    await untilQuiet()
    t.equal(fcm.to(token).length, 1)
    t.same(push!.message, {
      token,
      notification: { title: 'New message', body: 'You have received a new message' },
      data: { event: 'message-pickup' },
      android: { priority: 'high', collapse_key: 'message-pickup' },
      apns: {
        headers: { 'apns-push-type': 'alert', 'apns-priority': '10', 'apns-collapse-id': 'message-pickup' },
        payload: { aps: { 'content-available': 1, sound: 'default' } },
      },
    })
    t.equal(push!.project, 'main-project', 'the first project is the default')
  })

  t.test('no push while a session is live on another instance', async (t) => {
    const [token, connectionId] = [newToken(), newConnectionId()]
    await atB.call('addLiveSession', { connectionId, sessionId: 's' })
    await atA.call('addMessage', withToken(connectionId, token))
    const [received] = await atB.received(1)
    await atB.call('removeMessages', { connectionId, messageIds: [received!.id] })
    await untilQuiet()
    t.equal(fcm.to(token).length, 0)
    await atB.call('removeLiveSession', { connectionId })
    await untilQuiet()
    t.equal(fcm.to(token).length, 0, 'nor after it, for its mail was removed')
  })

  t.test('a session that ends with mail un-acked sends one push, and the next one with the same mail none', async (t) => {
    const [token, connectionId] = [newToken(), newConnectionId()]
    t.equal((await a.rest('PUT', `/v1/connections/${connectionId}/push-token`, { type: 'fcm', token })).status, 200)
    const phone = await b.connect()
    await phone.call('addLiveSession', { connectionId, sessionId: 's' })
    await atA.call('addMessage', message(connectionId))
    await phone.received(1)
    t.equal(fcm.to(token).length, 0)
    phone.socket.terminate()
    await fcm.came(token)
    const again = await b.connect()
    await again.call('addLiveSession', { connectionId, sessionId: 's' })
    t.equal((await again.call('takeFromQueue', { connectionId })).length, 1)
    again.socket.terminate()
    await untilQuiet()
    t.equal(fcm.to(token).length, 1)
  })

  t.test('a live-delivered message that is not removed before its lease runs out sends one push', async (t) => {
    const [token, connectionId] = [newToken(), newConnectionId()]
    await atA.call('setPushToken', { connectionId, type: 'fcm', token })
    const phone = await b.connect()
    await phone.call('addLiveSession', { connectionId, sessionId: 's' })
    await atA.call('addMessage', message(connectionId))
    await phone.received(1)
    // Its 30 s and the next look of the reconciler, without waiting for them.
    await onDatabase(`UPDATE queued_messages SET in_flight_until = now() - interval '1 minute' WHERE connection_id = '${connectionId}'`)
    await phone.received(2)
    await fcm.came(token)
    await onDatabase(`UPDATE queued_messages SET in_flight_until = now() - interval '10 minutes' WHERE connection_id = '${connectionId}'`)
    await phone.received(3)
    await untilQuiet()
    t.equal(fcm.to(token).length, 1, 'once for that message')
    await phone.close()
    await untilQuiet()
    t.equal(fcm.to(token).length, 1, 'also when the session ends')
  })

  t.test("any sender's message wakes a registered token; a message's own token goes first; without either nobody is woken", async (t) => {
    const [registered, own, connectionId] = [newToken(), newToken(), newConnectionId()]
    await atA.call('addMessage', message(connectionId))
    await atA.call('setPushToken', { connectionId, type: 'fcm', token: registered, project: 'other' })
    await atB.call('addMessage', message(connectionId))
    const [push] = await fcm.came(registered)
    t.equal(push!.project, 'other-project')
    await atB.call('addMessage', message(connectionId, 0, { token: own }))
    await fcm.came(own)
    t.equal(fcm.to(registered).length, 1)
    t.match(await atA.call('getPushToken', { connectionId }), { type: 'fcm', project: 'other', ending: registered.slice(-6) })
    t.equal(await atA.call('removePushToken', { connectionId }), true)
    t.equal(await atA.call('getPushToken', { connectionId }), null)
  })

  t.test('a message removed before its push was sent cancels it', async (t) => {
    const [token, connectionId] = [newToken(), newConnectionId()]
    fcm.answer(token, () => refusal(503, 'UNAVAILABLE', undefined, {}, { 'retry-after': '1' }))
    const id = await atA.call('addMessage', withToken(connectionId, token))
    await fcm.came(token)
    await atB.call('removeMessages', { connectionId, messageIds: [id] })
    await sleep(2_700)
    t.equal(fcm.to(token).length, 1)
  })

  t.test('a dead token is tried once and dropped, and its mediator is told each time it gives it', async (t) => {
    for (const answer of [
      UNREGISTERED,
      refusal(403, 'PERMISSION_DENIED', 'SENDER_ID_MISMATCH'),
      refusal(400, 'INVALID_ARGUMENT', 'INVALID_ARGUMENT', { message: 'The registration token is not a valid FCM registration token' }),
    ]) {
      const [token, connectionId] = [newToken(), newConnectionId()]
      fcm.answer(token, () => answer)
      const mediator = await a.connect()
      await mediator.call('addMessage', withToken(connectionId, token))
      await until(async () => (await atB.call('getPushToken', { connectionId })).dead, 'the end of the token')
      await mediator.call('addMessage', withToken(connectionId, token))
      const { params } = await mediator.frame(({ method }) => method === 'pushTokenInvalid')
      t.same(params, { connectionId, tokenEnding: token.slice(-6) })
      t.match(await atB.call('getPushToken', { connectionId }), { ending: token.slice(-6), dead: /FCM/ })
      await untilQuiet()
      t.equal(fcm.to(token).length, 1)
      fcm.answer(token, () => ACCEPTED)
      await atB.call('setPushToken', { connectionId, type: 'fcm', token })
      await atB.call('addMessage', message(connectionId))
      await fcm.came(token, 2)
    }
  })

  t.test('the owner of a live session is told, too', async (t) => {
    const [token, connectionId] = [newToken(), newConnectionId()]
    fcm.answer(token, () => UNREGISTERED)
    await atA.call('setPushToken', { connectionId, type: 'fcm', token })
    const owner = await b.connect()
    await owner.call('addLiveSession', { connectionId, sessionId: 's' })
    await atA.call('addMessage', message(connectionId))
    await owner.received(1)
    await onDatabase(`UPDATE queued_messages SET in_flight_until = now() - interval '1 minute' WHERE connection_id = '${connectionId}'`)
    const { params } = await owner.frame(({ method }) => method === 'pushTokenInvalid')
    t.same(params, { connectionId, tokenEnding: token.slice(-6) })
  })

  const LATER: [what: string, answer: Answer, atLeastMs: number][] = [
    ['429 with Retry-After', refusal(429, 'RESOURCE_EXHAUSTED', 'QUOTA_EXCEEDED', {}, { 'retry-after': '2' }), 2_000],
    ['503 with Retry-After', refusal(503, 'UNAVAILABLE', 'UNAVAILABLE', {}, { 'retry-after': '1' }), 1_000],
    ['503', refusal(503, 'UNAVAILABLE', 'UNAVAILABLE'), 100],
    ['500', refusal(500, 'INTERNAL', 'INTERNAL'), 100],
    ['401', refusal(401, 'UNAUTHENTICATED'), 100],
    ['403 that is about our credentials', refusal(403, 'PERMISSION_DENIED'), 100],
    ['404 that is not about the token', refusal(404, 'NOT_FOUND'), 100],
    ['a hang', 'hang', TIMEOUT_MS],
    ['a reset', 'reset', 100],
    ['an APNs key that has expired', refusal(401, 'UNAUTHENTICATED', 'THIRD_PARTY_AUTH_ERROR'), 100],
    ['a page that is no JSON, with 502', { status: 502, body: '<html>bad gateway</html>' }, 100],
    ['a page that is no JSON, with 200', { status: 200, body: '<html>login</html>' }, 100],
  ]
  t.test('what may pass is tried again, one attempt at a time, and the token is kept', async (t) => {
    const cases = LATER.map(([what, answer, atLeastMs], i) => ({
      what,
      answer,
      atLeastMs,
      project: `p${i}`,
      token: newToken(),
      connectionId: newConnectionId(),
    }))
    for (const { token, answer } of cases) fcm.answer(token, (nth) => (nth === 1 ? answer : ACCEPTED))
    for (const { token, project, connectionId } of cases)
      await atA.call('addMessage', message(connectionId, 0, { pushNotificationToken: { type: 'fcm', project, token } }))
    await Promise.all(cases.map(({ token }) => fcm.came(token, 2)))
    await untilQuiet()
    for (const { what, atLeastMs, token, connectionId } of cases) {
      const [first, second, ...others] = fcm.to(token)
      t.ok(second!.at - first!.at >= atLeastMs - 5, `${what}: after ${Math.round(second!.at - first!.at)} ms`)
      t.same(others, [], `${what}: it was sent then`)
      t.equal((await atA.call('getPushToken', { connectionId })).dead, undefined, `${what}: the token is kept`)
      t.equal(await atA.call('getAvailableMessageCount', { connectionId }), 1)
    }
  })

  t.test('a push that FCM rejects for what is in it is not tried again, and the token is kept', async (t) => {
    const [token, connectionId] = [newToken(), newConnectionId()]
    fcm.answer(token, () => refusal(400, 'INVALID_ARGUMENT', 'INVALID_ARGUMENT'))
    await atA.call('addMessage', withToken(connectionId, token))
    await fcm.came(token)
    await untilQuiet()
    t.equal(fcm.to(token).length, 1)
    t.equal((await atA.call('getPushToken', { connectionId })).dead, undefined)
  })

  t.test('an outage of FCM is asked about once in a while and not for every phone, and everybody is woken after it', async (t) => {
    const phones = Array.from({ length: 80 }, newToken)
    let isDown = true
    for (const token of phones) fcm.answer(token, () => (isDown ? refusal(503, 'UNAVAILABLE') : ACCEPTED))
    await Promise.all(phones.map((token) => atA.call('addMessage', withToken(newConnectionId(), token))))
    await sleep(3_000)
    const asked = fcm.sent.filter(({ token }) => phones.includes(token)).length
    isDown = false
    await Promise.all(phones.map((token) => until(() => fcm.to(token).length > 0, `a push to ${token}`)))
    // Sixty-four of each instance leave before the first answer; after that, few.
    t.ok(asked < 200, `${asked} attempts in 3 s for 80 phones`)
    await until(
      async () => Number((await onDatabase("SELECT count(*) FROM push_outbox WHERE state IN ('owed', 'sending')"))[0]!.count) === 0,
      'an empty outbox',
    )
  })

  t.test('two instances send nothing twice in one window', async (t) => {
    const phones = Array.from({ length: 30 }, () => ({ token: newToken(), connectionId: newConnectionId() }))
    const before = fcm.sent.length
    await Promise.all(
      Array.from({ length: 10 }, () => phones).flatMap((all, round) =>
        all.map(({ token, connectionId }) => (round % 2 ? atA : atB).call('addMessage', withToken(connectionId, token))),
      ),
    )
    await Promise.all(phones.map(({ token }) => fcm.came(token)))
    await untilQuiet()
    t.equal(fcm.sent.length - before, 30)
  })
})

t.test('a hundred messages and a hanging FCM: nobody waits for it', async (t) => {
  const service = await start(t)
  const client = await service.connect()
  for (let n = 0; n < 100; n++) {
    const token = newToken()
    fcm.answer(token, () => 'hang')
    t.type(await client.call('addMessage', withToken(newConnectionId(), token)), 'string')
  }
})

t.test('the mediator that gave a token with its message is told that it is dead, without asking', async (t) => {
  const service = await start(t, { DATABASE_URL: await testDatabase(t) })
  const [token, connectionId] = [newToken(), newConnectionId()]
  fcm.answer(token, () => UNREGISTERED)
  const client = await service.connect()
  await client.call('addMessage', withToken(connectionId, token))
  const { params } = await client.frame(({ method }) => method === 'pushTokenInvalid')
  t.same(params, { connectionId, tokenEnding: token.slice(-6) })
})

t.test('a reset is seen at once and not only when the time-out is over', async (t) => {
  const service = await start(t, { DATABASE_URL: await testDatabase(t), PUSH_TIMEOUT_MS: '10000' })
  const client = await service.connect()
  const token = newToken()
  fcm.answer(token, (nth) => (nth === 1 ? 'reset' : ACCEPTED))
  await client.call('addMessage', withToken(newConnectionId(), token))
  const [one, two] = await fcm.came(token, 2)
  t.ok(two!.at - one!.at < 5_000, `tried again after ${Math.round(two!.at - one!.at)} ms`)
})

t.test('a token endpoint that hangs once costs its time-out and no more', async (t) => {
  const settings = { ...fcm.processSettings, ...quick, DATABASE_URL: await testDatabase(t) }
  const server = await startServer(settings, { imports: ['./test/helpers/google-redirect.ts'] })
  t.teardown(() => server.end('SIGTERM'))
  const client = await connect(server.ws, t)
  const token = newToken()
  fcm.hangNextAccessToken()
  await client.call('addMessage', withToken(newConnectionId(), token))
  await fcm.came(token)
  t.equal(fcm.hangsLeft(), 0, 'it hung')
})

t.test('data-only pushes and the opaque tag', async (t) => {
  const PUSH_TAG_SECRET = 'a secret of the operator'
  const service = await start(t, { PUSH_DATA_ONLY: 'true', PUSH_TAG_SECRET, DATABASE_URL: await testDatabase(t) })
  const [token, connectionId] = [newToken(), newConnectionId()]
  await (await service.connect()).call('addMessage', withToken(connectionId, token))
  const [{ message: sent } = { message: undefined }] = await fcm.came(token)
  t.equal(sent.notification, undefined)
  t.same(sent.data, {
    event: 'message-pickup',
    tag: createHmac('sha256', PUSH_TAG_SECRET).update(connectionId).digest('base64url').slice(0, 22),
  })
  t.same(sent.apns.headers, { 'apns-push-type': 'background', 'apns-priority': '5', 'apns-collapse-id': 'message-pickup' })
  t.notMatch(JSON.stringify(sent), connectionId)
  t.notMatch(JSON.stringify(sent), DID)
})

t.test('a push is given up after PUSH_GIVE_UP_SECONDS, and the next message owes one anew', async (t) => {
  const DATABASE_URL = await testDatabase(t)
  const service = await start(t, { PUSH_GIVE_UP_SECONDS: '1', DATABASE_URL })
  const [token, connectionId] = [newToken(), newConnectionId()]
  fcm.answer(token, () => refusal(503, 'UNAVAILABLE'))
  const client = await service.connect()
  await client.call('addMessage', withToken(connectionId, token))
  const state = async () => (await onDatabase(`SELECT state FROM push_outbox`, DATABASE_URL))[0]?.state
  await until(async () => (await state()) === 'resting', 'giving up')
  const tries = fcm.to(token).length
  await untilQuiet()
  t.equal(fcm.to(token).length, tries)
  fcm.answer(token, () => ACCEPTED)
  await client.call('addMessage', withToken(connectionId, token))
  await fcm.came(token, tries + 1)
})

t.test(
  'a token that nobody here can send to is refused when it is registered; with a message it is ignored and the message is stored',
  async (t) => {
    const service: Service = await start(t)
    const client = await service.connect()
    const connectionId = newConnectionId()
    for (const [params, field, text] of [
      [{ type: 'apns', token: 'x' }, 'type', /only fcm/],
      [{ type: 'fcm', token: 'x', project: 'unknown' }, 'project', /main, other/],
    ] as const) {
      const { error } = await client.ask('setPushToken', { connectionId, ...params })
      t.match(error, { data: { code: 'invalid_params', field }, message: text })
      t.type(await client.call('addMessage', message(connectionId, 0, { pushNotificationToken: params })), 'string')
    }
    t.equal(await client.call('getPushToken', { connectionId }), null)
  },
)

t.test('without Firebase credentials tokens are kept and nothing is sent', async (t) => {
  const service = await startService(t)
  const client = await service.connect()
  const [token, connectionId] = [newToken(), newConnectionId()]
  await client.call('setPushToken', { connectionId, type: 'fcm', token })
  await client.call('addMessage', withToken(connectionId, token))
  await untilQuiet()
  t.equal(fcm.to(token).length, 0)
  t.match(await client.call('getPushToken', { connectionId }), { ending: token.slice(-6) })
})

t.test('credentials that cannot be used are refused with the sentence that mends it', async (t) => {
  for (const [text, expected] of [
    ['/no/such/file.json', /\/no\/such\/file\.json, which cannot be read \(ENOENT\)/],
    ['{"a": }', /is not valid JSON/],
    ['{"project_id": "p", "private_key": "k"}', /needs project_id, client_email and private_key/],
    ['main=/no/such,other=/file', /\/no\/such, which cannot be read/],
    ['{"main": {}}', /project main of FIREBASE_CREDENTIALS is not the key/],
    ['{}', /names no project/],
    ['package.json,package.json', /is not the key/],
    [Buffer.from(fcm.settings.FIREBASE_CREDENTIALS!).toString('base64'), /looks like base64/],
  ] as const) {
    t.throws(() => readCredentials(text), { name: 'ConfigError', message: expected }, text.slice(0, 40))
    t.throws(() => readCredentials(text), /^.{0,300}$/, 'nothing long is repeated')
  }
  t.same([...readCredentials('application-default')], [['default', 'application-default']])
})

t.test('Retry-After is seconds or a date', async (t) => {
  const now = Date.parse('2026-01-31T12:00:00Z')
  t.equal(parseRetryAfter('120', now), 120_000)
  t.equal(parseRetryAfter('Sat, 31 Jan 2026 12:01:00 GMT', now), 60_000)
  for (const text of [undefined, '', 'soon', '-1', 'Sat, 31 Jan 2026 11:00:00 GMT']) t.equal(parseRetryAfter(text, now), undefined)
})

t.test('pushes are counted by outcome, and neither log nor metrics show more of a token than its end', async (t) => {
  const settings = {
    ...fcm.processSettings,
    ...quick,
    DATABASE_URL: await testDatabase(t),
    LOG_LEVEL: 'trace',
    PUSH_TIMEOUT_MS: '10000',
    PUSH_GIVE_UP_SECONDS: '2',
  }
  const server = await startServer(settings, { imports: ['./test/helpers/google-redirect.ts'] })
  t.teardown(() => server.end('SIGTERM'))
  const client = await connect(server.ws, t)
  const canary = 'canary-registration-token'
  const answers: Record<string, Answer> = {
    good: ACCEPTED,
    dead: UNREGISTERED,
    bad: refusal(400, 'INVALID_ARGUMENT'),
    busy: refusal(503, 'UNAVAILABLE'),
  }
  for (const [name, answer] of Object.entries(answers)) {
    // FCM may repeat what it was given.
    const body = answer === ACCEPTED ? ACCEPTED : JSON.parse(JSON.stringify(answer).replace('as FCM says it', `${canary}-${name} is wrong`))
    fcm.answer(`${canary}-${name}`, () => body as Answer)
    await client.call('addMessage', withToken(newConnectionId(), `${canary}-${name}`))
    await fcm.came(`${canary}-${name}`)
  }
  const metrics = async () => (await fetch(`${server.url}/metrics`)).text()
  await until(async () => /gave_up"} 1/.test(await metrics()), 'all outcomes')
  for (const outcome of ['accepted', 'dead', 'rejected', 'gave_up']) t.match(await metrics(), `mpr_pushes_total{outcome="${outcome}"} 1`)
  const lines = JSON.stringify(server.log)
  for (const text of ['push token is dead', 'push was rejected', 'push failed, trying again', 'push was given up', 'push sent'])
    t.match(lines, text)
  t.notMatch(lines + (await metrics()), canary)
})

t.test('push:test sends one push and says in words what came of it', async (t) => {
  const config = readConfig({ ...fcm.settings, PUSH_TIMEOUT_MS: '1000' })
  const [good, dead, busy, forbidden, hanging] = Array.from({ length: 5 }, newToken) as [string, string, string, string, string]
  fcm.answer(dead, () => UNREGISTERED)
  fcm.answer(busy, () => refusal(503, 'UNAVAILABLE'))
  fcm.answer(forbidden, () => refusal(403, 'PERMISSION_DENIED'))
  fcm.answer(hanging, () => 'hang')
  for (const [token, isSent, expected] of [
    [good, true, /FCM took it/],
    [dead, false, /not this token.*UNREGISTERED/],
    [busy, false, /not sent.*503.*try again later/],
    [forbidden, false, /not sent.*403.*may send messages/],
    [hanging, false, /did not answer within 1000 ms.*Check that this machine reaches/],
  ] as const) {
    const said: string[] = []
    t.equal(await tryPush(config, ['--token', token, '--project', 'other'], (line) => said.push(line)), isSent)
    t.match(said.join(' '), expected)
    t.notMatch(said.join(' '), token, 'the token is not said')
    t.equal(fcm.to(token)[0]!.project, 'other-project')
  }
  await t.rejects(
    tryPush(config, [], () => {}),
    /Say which device/,
  )
  await t.rejects(
    tryPush(config, ['--token', 'x', '--project', 'unknown'], () => {}),
    /no project "unknown"/,
  )
  await t.rejects(
    tryPush(readConfig({}), ['--token', 'x'], () => {}),
    /Pushes are off/,
  )
})
