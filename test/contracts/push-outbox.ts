import { randomUUID } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Test } from 'tap'
import type { DuePush, MessageStore, NewMessage, PushOutbox, PushToken, SessionDirectory } from '../../src/ports.js'
import { jsonBytes } from '../helpers/json.js'
import { byPromise, type StoreByPromise } from '../helpers/store.js'

/** The end of a session is looked at after a while (1.5 s), and that has to be over. */
const AFTER_SESSION_MS = 1_700

export interface OutboxUnderTest {
  /** Two instances on the same data, which nobody else uses. */
  stores: [MessageStore, MessageStore]
  outboxes: [PushOutbox, PushOutbox]
  sessions: SessionDirectory
  windowMs: number
  /** After this a claim that was not settled is free. */
  claimMs: number
}

/** The contract of the port PushOutbox, with what the store and the session directory owe to it. */
export async function pushOutboxContract(t: Test, { outboxes, sessions, windowMs, claimMs, ...given }: OutboxUnderTest): Promise<void> {
  const [store, otherStore] = [byPromise(given.stores[0]), byPromise(given.stores[1])]
  const stores = [store, otherStore]
  const [outbox, other] = outboxes
  const mine = new Set<string>() // tokens of the test that runs; what another one left owed is put aside
  const newToken = (): PushToken => {
    const token = `token ${randomUUID()}`
    mine.add(token)
    return { type: 'fcm', token }
  }
  const newId = () => randomUUID()
  const message = (connectionId: string, pushToken?: PushToken): NewMessage => ({
    ...{ connectionId, recipientDids: ['did:x'], payload: jsonBytes('{}'), payloadBytes: 2, pushToken },
  })
  const add = async (own: StoreByPromise, connectionId: string, pushToken?: PushToken) => own.add(message(connectionId, pushToken))
  const tokens = (pushes: DuePush[]) => pushes.map(({ token }) => token.token)
  const claim = async (own = outbox, limit = 100) => {
    const { due } = await own.claim(limit)
    for (const push of due) if (!mine.has(push.token.token)) await own.settle(push, { as: 'over' })
    return due.filter(({ token }) => mine.has(token.token))
  }
  /** The next push that falls due. */
  const next = async (withinMs = windowMs * 4 + claimMs * 2) => {
    for (const deadline = Date.now() + withinMs; Date.now() < deadline; await sleep(20)) {
      const [push] = await claim()
      if (push) return push
    }
    return undefined
  }
  /** Nothing is due now, nor when every window and claim that may run is over. */
  const nothingMore = async (t: Test, what: string) => t.equal(await next(windowMs + AFTER_SESSION_MS), undefined, what)

  t.beforeEach(() => mine.clear())

  t.test('a message for a connection without a live session owes a push to the token that came with it', async (t) => {
    const [connectionId, token] = [newId(), newToken()]
    const { id, push } = await add(store, connectionId, token)
    t.equal(push, 'owed')
    const [due, ...others] = await claim(other)
    t.same(others, [])
    t.same(due!.token, token)
    t.equal(due!.connectionId, connectionId)
    t.equal(due!.attempts, 0)
    await other.settle(due!, { as: 'sent' })
    await store.remove(connectionId, [id])
    await nothingMore(t, 'and only one')
  })

  t.test('a message without a token owes nothing, until there is one for its connection', async (t) => {
    const [connectionId, token] = [newId(), newToken()]
    t.equal((await add(store, connectionId)).push, undefined)
    await outbox.setToken(connectionId, token)
    t.equal((await add(otherStore, connectionId)).push, 'owed')
    const [due] = await claim()
    t.same(due!.token, token)
    await outbox.settle(due!, { as: 'sent' })
  })

  t.test('a token that came with a message wakes for later messages without one; a registered one is not replaced by it', async (t) => {
    const [connectionId, first, second, registered] = [newId(), newToken(), newToken(), newToken()]
    await add(store, connectionId, first)
    await add(store, connectionId, second)
    t.same(tokens(await claim()).sort(), [first.token, second.token].sort(), 'each message wakes its own token')
    await add(store, connectionId)
    t.equal((await outbox.getToken(connectionId))!.ending, second.token.slice(-6))
    await outbox.setToken(connectionId, registered)
    await add(store, connectionId, first)
    t.equal((await other.getToken(connectionId))!.ending, registered.token.slice(-6))
  })

  t.test('a hundred messages through two instances owe one push to their token', async (t) => {
    const token = newToken()
    const connections = Array.from({ length: 10 }, newId)
    await Promise.all(Array.from({ length: 100 }, (_, i) => add(stores[i % 2]!, connections[i % 10]!, token)))
    const due = [...(await claim()), ...(await claim(other))].filter((push) => push.token.token === token.token)
    t.equal(due.length, 1)
    await outbox.settle(due[0]!, { as: 'sent' })
    await nothingMore(t, 'the device has not come, so what it was sent for still stands')
  })

  t.test('within the window another push is owed only if the device has come since, and then at its end', async (t) => {
    const [connectionId, token] = [newId(), newToken()]
    const { id } = await add(store, connectionId, token)
    const [first] = await claim()
    await outbox.settle(first!, { as: 'sent' })
    const sentAt = Date.now()
    await store.remove(connectionId, [id])
    await add(store, connectionId, token)
    t.same(await claim(), [], 'the window is open')
    const second = await next()
    t.same(second!.token, token)
    t.ok(Date.now() - sentAt >= windowMs - 5, 'after the window')
    await outbox.settle(second!, { as: 'sent' })
  })

  t.test('a message that is removed before its push was sent cancels it', async (t) => {
    const [connectionId, token] = [newId(), newToken()]
    const { id } = await add(store, connectionId, token)
    await store.remove(connectionId, [id])
    const { due, cancelled } = await outbox.claim(100)
    t.notOk(tokens(due).includes(token.token))
    t.ok(cancelled >= 1)
    t.equal((await add(store, connectionId, token)).push, 'owed', 'the next message owes one anew')
    t.equal((await claim()).length, 1)
  })

  t.test('nothing is owed while the connection is live; its end owes a push if it left mail behind, once for that mail', async (t) => {
    const [connectionId, token] = [newId(), newToken()]
    await outbox.setToken(connectionId, token)
    const { epoch } = await sessions.open({ connectionId, sessionId: 's' })
    t.equal((await add(store, connectionId)).push, undefined)
    await sessions.close({ connectionId, epoch })
    t.same(await claim(), [], 'it has a window to come back')
    const reminder = await next()
    t.same(reminder!.token, token)
    await outbox.settle(reminder!, { as: 'sent' })
    await sleep(windowMs)
    const again = await sessions.open({ connectionId, sessionId: 's' })
    await sessions.closeMany([{ connectionId, epoch: again.epoch }])
    await nothingMore(t, 'mail that is never removed does not wake the phone for ever')
    const third = await sessions.open({ connectionId, sessionId: 's' })
    await add(store, connectionId)
    await sessions.closeMany([{ connectionId, epoch: third.epoch }])
    t.same((await next())!.token, token, 'newer mail does')
  })

  t.test('a session that ends with an empty queue owes nothing', async (t) => {
    const [connectionId, token] = [newId(), newToken()]
    await outbox.setToken(connectionId, token)
    const { epoch } = await sessions.open({ connectionId, sessionId: 's' })
    const { id } = await add(store, connectionId)
    await store.remove(connectionId, [id])
    await sessions.close({ connectionId, epoch })
    await nothingMore(t, 'nobody needs to come')
  })

  t.test('a wallet that came back before its push is not woken, and is when it leaves its mail again', async (t) => {
    const [connectionId, token] = [newId(), newToken()]
    await add(store, connectionId, token)
    const { epoch } = await sessions.open({ connectionId, sessionId: 's' })
    await nothingMore(t, 'it is live')
    await sessions.close({ connectionId, epoch })
    t.same((await next())!.token, token)
  })

  t.test('a session without a socket owes when its time is over', async (t) => {
    const [connectionId, token] = [newId(), newToken()]
    await outbox.setToken(connectionId, token)
    await sessions.open({ connectionId, sessionId: 'rest', ttlMs: 50 })
    await add(store, connectionId)
    while (await sessions.isLive(connectionId)) await sleep(10)
    await sessions.sweep()
    t.same((await next())!.token, token)
  })

  t.test('mail that a live session does not remove owes a push although it is live', async (t) => {
    const [connectionId, token] = [newId(), newToken()]
    await outbox.setToken(connectionId, token)
    const { epoch } = await sessions.open({ connectionId, sessionId: 's' })
    await add(store, connectionId)
    const claimed = await store.claim({ connectionId, epoch, limit: 10, limitBytes: 1_000, alone: true, leaseMs: 0 })
    t.equal(claimed.messages[0]!.deliveries, 1)
    await outbox.remind(connectionId)
    await nothingMore(t, 'delivered once, its lease has not run out')
    await sessions.close({ connectionId, epoch })
    t.same((await next())!.token, token)
  })

  t.test('what is owed while a push is being sent is owed again', async (t) => {
    const [connectionId, token] = [newId(), newToken()]
    const { id } = await add(store, connectionId, token)
    const [first] = await claim()
    await add(store, connectionId, token)
    t.same(await claim(), [], 'not while the first is on its way')
    await store.remove(connectionId, [id])
    await outbox.settle(first!, { as: 'sent' })
    const second = await next()
    t.same(second?.token, token)
    await outbox.settle(second!, { as: 'over' })
    await nothingMore(t, 'then it is over')
  })

  t.test('a push whose sender died is claimed again, and the dead one can settle nothing', async (t) => {
    const [connectionId, token] = [newId(), newToken()]
    await add(store, connectionId, token)
    const [first] = await claim()
    t.same(await claim(other), [], 'claimed')
    const second = await next()
    t.same(second!.token, token)
    await outbox.settle(first!, { as: 'dead', reason: 'too late' })
    t.equal((await outbox.getToken(connectionId))!.dead, undefined)
    await outbox.settle(second!, { as: 'sent' })
    await nothingMore(t, 'it was sent')
  })

  t.test('sixteen concurrent claims share what is due, none twice', async (t) => {
    const all = Array.from({ length: 200 }, newToken)
    await Promise.all(all.map((token) => add(store, newId(), token)))
    const claimed = await Promise.all(Array.from({ length: 16 }, (_, i) => claim(outboxes[i % 2], 20)))
    const found = [...claimed.flat(), ...(await claim())]
    t.same(tokens(found).sort(), all.map(({ token }) => token).sort())
    await Promise.all(found.map((push) => outbox.settle(push, { as: 'over' })))
  })

  t.test('a push that failed is due again later, with its attempts; a new message does not hurry it', async (t) => {
    const [connectionId, token] = [newId(), newToken()]
    await add(store, connectionId, token)
    const [first] = await claim()
    await outbox.settle(first!, { as: 'again', afterMs: windowMs, failed: true })
    const failedAt = Date.now()
    await add(store, connectionId, token)
    const addedAt = Date.now()
    const second = await next()
    t.ok(Date.now() - failedAt >= windowMs - 5)
    t.equal(second!.attempts, 1)
    t.ok(second!.ageMs >= windowMs - (addedAt - failedAt) - 5, 'it is known since when it is owed: since the newest message')
    await outbox.settle(second!, { as: 'again', afterMs: 0, failed: false })
    t.equal((await next())!.attempts, 1)
  })

  t.test('a dead token is dropped for all its connections, remembered, and tried again when it is set anew', async (t) => {
    const [one, two, elsewhere, token, fresh] = [newId(), newId(), newId(), newToken(), newToken()]
    await outbox.setToken(one, token)
    await outbox.setToken(two, token)
    await outbox.setToken(elsewhere, fresh)
    await add(store, one)
    const [due] = await claim()
    t.same((await outbox.settle(due!, { as: 'dead', reason: 'gone' })).sort(), [one, two].sort())
    t.match(await outbox.getToken(one), { type: 'fcm', ending: token.token.slice(-6), dead: 'gone' })
    t.equal((await outbox.getToken(elsewhere))!.dead, undefined)
    t.equal((await add(store, one)).push, undefined)
    t.equal((await add(store, two, token)).push, 'token is dead')
    t.equal((await add(otherStore, newId(), token)).push, 'token is dead')
    t.same(await claim(), [])
    t.equal((await add(store, elsewhere, token)).push, 'token is dead')
    t.same(tokens(await claim()), [fresh.token], 'the registered token stands in for a dead one')
    await outbox.setToken(two, token)
    t.equal((await other.getToken(two))!.dead, undefined)
    t.equal((await add(store, two)).push, 'owed')
    t.same(tokens(await claim()), [token.token])
  })

  t.test('a token that is replaced before it died stays replaced', async (t) => {
    const [connectionId, old, fresh] = [newId(), newToken(), newToken()]
    await outbox.setToken(connectionId, old)
    await add(store, connectionId)
    const [due] = await claim()
    await outbox.setToken(connectionId, fresh)
    t.same(await outbox.settle(due!, { as: 'dead', reason: 'gone' }), [])
    t.match(await outbox.getToken(connectionId), { ending: fresh.token.slice(-6) })
  })

  t.test('removing a token cancels what is owed to it', async (t) => {
    const [connectionId, token] = [newId(), newToken()]
    t.equal(await outbox.removeToken(connectionId), false)
    t.equal(await outbox.getToken(connectionId), undefined)
    await outbox.setToken(connectionId, { ...token, project: 'other' })
    t.match(await outbox.getToken(connectionId), { type: 'fcm', project: 'other', ending: token.token.slice(-6) })
    await add(store, connectionId)
    t.equal(await outbox.removeToken(connectionId), true)
    t.same(await claim(), [])
    t.equal((await add(store, connectionId)).push, undefined)
  })

  t.test('a message that was added before, by its idempotencyKey, owes nothing again', async (t) => {
    const [connectionId, token] = [newId(), newToken()]
    const keyed = { ...message(connectionId, token), idempotencyKey: 'key' }
    const first = await store.add(keyed)
    t.equal(first.push, 'owed')
    const [due] = await claim()
    await outbox.settle(due!, { as: 'sent' })
    t.same(await otherStore.add(keyed), { id: first.id })
    await nothingMore(t, 'one message, one push')
  })

  t.test('one token of several connections: each reason for a push holds by itself', async (t) => {
    const [one, two, token] = [newId(), newId(), newToken()]
    await outbox.setToken(one, token)
    await outbox.setToken(two, token)
    const settleAll = async () => {
      const push = await next()
      if (push) await outbox.settle(push, { as: 'sent' })
      await sleep(windowMs)
      return push?.token
    }

    const first = await add(store, one)
    const second = await add(store, two)
    await store.remove(two, [second.id])
    t.same(await settleAll(), token, 'the message of the other was removed')
    await store.remove(one, [first.id])

    const [mine, others] = [
      await sessions.open({ connectionId: one, sessionId: 's' }),
      await sessions.open({ connectionId: two, sessionId: 's' }),
    ]
    await add(store, two)
    await sessions.closeMany([
      { connectionId: one, epoch: mine.epoch },
      { connectionId: two, epoch: others.epoch },
    ])
    t.same(await settleAll(), token, 'both sessions end, one left messages behind')

    await add(store, one)
    const failed = await next()
    await outbox.settle(failed!, { as: 'again', afterMs: 0, failed: true })
    const empty = await sessions.open({ connectionId: two, sessionId: 's' })
    await store.removeAll(two, 'did:x')
    await sessions.close({ connectionId: two, epoch: empty.epoch })
    t.same(await settleAll(), token, 'the other comes and goes while the push is tried again')

    await add(store, one)
    await outbox.removeToken(two)
    t.same(await settleAll(), token, 'the other has its token removed')
  })

  t.test('of two messages the newer one is removed: the push is for the older', async (t) => {
    const [connectionId, token] = [newId(), newToken()]
    await add(store, connectionId, token)
    const { id } = await add(store, connectionId, token)
    await store.remove(connectionId, [id])
    t.same((await next())?.token, token)
  })

  t.test('a mediatee that came, left and got another message within the window is woken again', async (t) => {
    const [connectionId, token] = [newId(), newToken()]
    await add(store, connectionId, token)
    await outbox.settle((await next())!, { as: 'sent' })
    const { epoch } = await sessions.open({ connectionId, sessionId: 's' })
    await sessions.close({ connectionId, epoch })
    await add(store, connectionId, token)
    t.same((await next())?.token, token)
  })

  t.test('when the token of a message is dead, the registered one is woken for it', async (t) => {
    const [connectionId, stale, registered] = [newId(), newToken(), newToken()]
    await outbox.setToken(connectionId, registered)
    await add(store, connectionId, stale)
    const [push] = await claim()
    t.same(push!.token, stale)
    await outbox.settle(push!, { as: 'dead', reason: 'gone' })
    t.same((await next())?.token, registered)
  })

  t.test('what comes while a push is sent for the end of a session has its own', async (t) => {
    const [connectionId, token] = [newId(), newToken()]
    await outbox.setToken(connectionId, token)
    const first = await sessions.open({ connectionId, sessionId: 's' })
    await add(store, connectionId)
    await sessions.close({ connectionId, epoch: first.epoch })
    const push = await next()
    const second = await sessions.open({ connectionId, sessionId: 's' })
    await add(store, connectionId)
    await sessions.close({ connectionId, epoch: second.epoch })
    await outbox.settle(push!, { as: 'sent' })
    t.same((await next())?.token, token)
  })

  t.test('an app that registers its token anew at each start is not woken for the same message for ever', async (t) => {
    const [connectionId, token] = [newId(), newToken()]
    await outbox.setToken(connectionId, token)
    await add(store, connectionId)
    let pushes = 0
    for (let start = 0; start < 3; start++) {
      const push = await next(AFTER_SESSION_MS + windowMs)
      if (push) {
        pushes++
        await outbox.settle(push, { as: 'sent' })
      }
      const { epoch } = await sessions.open({ connectionId, sessionId: 's' })
      t.equal(await outbox.removeToken(connectionId), true)
      await outbox.setToken(connectionId, token)
      await sessions.close({ connectionId, epoch })
    }
    await nothingMore(t, 'no more')
    t.equal(pushes, 2, 'one when it came, one when it was left behind')
  })

  t.test('instances that add to the same tokens, in any order, do not wait for each other in a circle', async (t) => {
    for (let round = 0; round < 15; round++) {
      const phones = Array.from({ length: 20 }, () => ({ connectionId: newId(), token: newToken() }))
      const half = phones.slice(0, 10)
      const results = await Promise.allSettled([
        ...phones.map(({ connectionId, token }) => add(store, connectionId, token)),
        ...[...half].reverse().map(({ connectionId, token }) => add(otherStore, connectionId, token)),
        ...half.map(({ connectionId, token }) => outbox.setToken(connectionId, token)),
        ...half.map(({ connectionId }) => other.removeToken(connectionId)),
        claim().then((due) => Promise.all(due.map((push) => outbox.settle(push, { as: 'dead', reason: 'gone' })))),
      ])
      t.same(
        results.flatMap((result) => (result.status === 'rejected' ? [String(result.reason)] : [])),
        [],
      )
    }
  })

  t.test('windows that are over are forgotten', async (t) => {
    await sleep(windowMs)
    await outbox.sweep()
    t.same(await claim(), [])
  })
}
