import type { Test } from 'tap'
import { randomUUID } from 'node:crypto'
import type { CallError } from '../../src/errors.js'
import type { JsonText } from '../../src/json.js'
import type { Added, MessageStore, NewMessage, SessionDirectory } from '../../src/ports.js'
import { jsonBytes } from '../helpers/json.js'
import { byPromise, type StoreByPromise } from '../helpers/store.js'

export interface StoreUnderTest {
  /** Two stores on the same data, as two instances have them. */
  stores: [MessageStore, MessageStore]
  /** Of the first of the two instances. */
  sessions: SessionDirectory
  /** A third store on the same data, with messages that expire after a second. */
  expiring: MessageStore
}

const DID_A = 'did:key:a'
const DID_B = 'did:key:b'

/** The contract of the ports MessageStore and SessionDirectory, which share their data. Every backend runs it. */
export async function storeContract(t: Test, { sessions, expiring, ...given }: StoreUnderTest): Promise<void> {
  const [store, other] = [byPromise(given.stores[0]), byPromise(given.stores[1])]
  const stores = [store, other]
  const newId = () => randomUUID()
  const message = (connectionId: string, text: string, more: Partial<NewMessage> = {}): NewMessage => {
    const payload = jsonBytes(JSON.stringify({ ciphertext: text }))
    return { connectionId, recipientDids: [DID_A], payload, payloadBytes: payload.length, ...more }
  }
  const take = { limit: 1_000, limitBytes: 8_000_000, remove: false, leaseMs: 30_000 }
  const claim = { limit: 256, limitBytes: 1_000_000, alone: true, leaseMs: 30_000 }
  const textOf = ({ encryptedMessage }: { encryptedMessage: JsonText }) =>
    (JSON.parse(encryptedMessage) as { ciphertext: string }).ciphertext
  const texts = (messages: { encryptedMessage: JsonText }[]) => messages.map(textOf)
  const numbers = (from: number, to: number) => Array.from({ length: to - from + 1 }, (_, i) => String(from + i))
  const idOf = async (added: Promise<Added>) => (await added).id
  const fill = (connectionId: string, from: number, to: number) =>
    Promise.all(numbers(from, to).map((n) => idOf(store.add(message(connectionId, n)))))

  t.test('concurrent adds of one process for one connection keep the order of their calls', async (t) => {
    const connections = Array.from({ length: 5 }, newId)
    const calls = numbers(1, 300).flatMap((n) => connections.map((connectionId) => ({ connectionId, n })))
    const ids = await Promise.all(calls.map(({ connectionId, n }) => idOf(store.add(message(connectionId, n)))))
    t.equal(new Set(ids).size, ids.length, 'ids are unique')
    for (const connectionId of connections) {
      const messages = await other.take({ ...take, connectionId })
      t.same(texts(messages), numbers(1, 300))
      t.same(
        messages.map(({ id }) => id),
        ids.filter((_, i) => calls[i]!.connectionId === connectionId),
        'each call got the id of its own message',
      )
    }
  })

  t.test('adds through two instances come in the order in which they were answered', async (t) => {
    const connectionId = newId()
    for (const n of numbers(1, 20)) await stores[Number(n) % 2]!.add(message(connectionId, n))
    t.same(texts(await store.take({ ...take, connectionId })), numbers(1, 20))
  })

  t.test('so do those that come many at a time, with single ones between them', async (t) => {
    const connectionId = newId()
    const ids: string[] = []
    for (let n = 0; n < 6; n++) {
      const add = (text: string) => idOf(stores[n % 2]!.add(message(connectionId, text)))
      ids.push(...(await Promise.all(numbers(1, 150).map(() => add('many')))), await add('one'))
    }
    const messages = await store.take({ ...take, connectionId })
    t.same(
      messages.map(({ id }) => id),
      ids,
    )
  })

  t.test('a payload comes back as it came, to the byte', async (t) => {
    const connectionId = newId()
    const payloads = [
      '{"z":1,"a":12345678901234567890}',
      '"\\u0000\\ud800"',
      '{ "spaced" : [1e400] }',
      JSON.stringify('ünï😀'),
      `"${'x'.repeat(100_000)}"`,
      '{"quote":"\\"\\\\{},"}',
      '"NULL"',
      '""',
    ]
    for (const payload of payloads)
      await store.add(message(connectionId, '', { payload: jsonBytes(payload), payloadBytes: payload.length }))
    t.same(
      (await store.take({ ...take, connectionId })).map(({ encryptedMessage }) => encryptedMessage),
      payloads,
    )
  })

  t.test('receivedAt is what the mediator gave, or the time of the store', async (t) => {
    const connectionId = newId()
    await store.add(message(connectionId, '1', { receivedAt: '2020-02-29T12:00:00.5+02:00' }))
    await store.add(message(connectionId, '2'))
    const [given, own] = await store.take({ ...take, connectionId })
    t.equal(given!.receivedAt, '2020-02-29T10:00:00.500Z')
    t.match(own!.receivedAt, /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/)
    t.ok(Math.abs(Date.parse(own!.receivedAt) - Date.now()) < 60_000)
  })

  t.test('a message that the store refuses fails alone', async (t) => {
    const connectionId = newId()
    const results = await Promise.allSettled(
      numbers(1, 9).map((n) => store.add(message(connectionId, n, n === '5' ? { recipientDids: ['did:\0'] } : {}))),
    )
    t.same(
      results.map(({ status }) => status),
      numbers(1, 9).map((n) => (n === '5' ? 'rejected' : 'fulfilled')),
    )
    t.same(
      texts(await store.take({ ...take, connectionId })),
      numbers(1, 9).filter((n) => n !== '5'),
    )
  })

  t.test('an idempotencyKey answers the first id while that message exists, on every instance', async (t) => {
    const connectionId = newId()
    const keyed = message(connectionId, '1', { idempotencyKey: 'key' })
    const adds = [store.add(keyed), other.add(keyed), store.add(message(connectionId, '2')), store.add(keyed)]
    const ids = await Promise.all(adds.map(idOf))
    t.equal(ids[0], ids[1])
    t.equal(ids[0], ids[3])
    t.not(ids[0], ids[2])
    const elsewhere = await idOf(store.add(message(newId(), '1', { idempotencyKey: 'key' })))
    t.not(elsewhere, ids[0], 'the key belongs to its connection')
    t.equal(await store.count(connectionId), 2)
    t.equal(await other.idOfKey(keyed), ids[0])
    t.equal(await other.idOfKey({ ...keyed, idempotencyKey: 'another' }), undefined)
  })

  t.test('a message that was removed does not come again when its add is repeated; another one under its key does', async (t) => {
    const removals: ((connectionId: string, id: string) => Promise<unknown>)[] = [
      (connectionId, id) => store.remove(connectionId, [id]),
      (connectionId) => store.removeAll(connectionId, DID_A),
      (connectionId) => store.take({ ...take, connectionId, remove: true }),
    ]
    for (const removed of removals) {
      const connectionId = newId()
      const keyed = message(connectionId, '1', { idempotencyKey: 'key' })
      const id = await idOf(store.add(keyed))
      await removed(connectionId, id)
      t.same(await other.add(keyed), { id })
      t.equal(await other.idOfKey(keyed), id)
      t.equal(await store.count(connectionId), 0)
      const another = await idOf(other.add({ ...message(connectionId, '2'), idempotencyKey: 'key' }))
      t.not(another, id)
      t.same(texts(await store.take({ ...take, connectionId })), ['2'])
      await removed(connectionId, another)
      await store.sweep(10)
      t.same(
        await store.add({ ...message(connectionId, '2'), idempotencyKey: 'key' }),
        { id: another },
        'the newest is remembered for a while',
      )
    }
  })

  t.test('an add that is repeated while its message is being removed answers the first id', async (t) => {
    const keyeds = numbers(1, 100).map((n) => message(newId(), n, { idempotencyKey: 'key' }))
    const ids = await Promise.all(keyeds.map((keyed) => idOf(store.add(keyed))))
    const removals = keyeds.map(({ connectionId }, i) => store.remove(connectionId, [ids[i]!]))
    t.same(await Promise.all(keyeds.map((keyed) => idOf(other.add(keyed)))), ids)
    await Promise.all(removals)
  })

  t.test('take without a live session can be repeated', async (t) => {
    const connectionId = newId()
    await fill(connectionId, 1, 5)
    t.same(texts(await store.take({ ...take, connectionId, limit: 3 })), ['1', '2', '3'])
    t.same(texts(await other.take({ ...take, connectionId, limit: 3 })), ['1', '2', '3'])
    t.equal(await store.count(connectionId), 5)
  })

  t.test('recipientDid narrows what is taken, counted and removed', async (t) => {
    const connectionId = newId()
    const elsewhere = newId()
    await store.add(message(connectionId, 'a'))
    await store.add(message(connectionId, 'b', { recipientDids: [DID_B] }))
    await store.add(message(connectionId, 'ab', { recipientDids: [DID_A, DID_B] }))
    await store.add(message(elsewhere, 'b', { recipientDids: [DID_B] }))
    t.same(texts(await store.take({ ...take, connectionId, recipientDid: DID_B })), ['b', 'ab'])
    t.equal(await store.count(connectionId, DID_A), 2)
    t.equal((await store.removeAll(connectionId, DID_B)).length, 2)
    t.same(texts(await store.take({ ...take, connectionId })), ['a'])
    t.equal(await store.count(elsewhere), 1, 'other connections are not touched')
  })

  t.test('a byte limit ends the batch; what could never fit is passed over, and goes alone when it is first', async (t) => {
    const connectionId = newId()
    for (const [text, payloadBytes] of [
      ['1', 400],
      ['2', 5_000],
      ['3', 400],
      ['4', 400],
      ['5', 100],
    ] as const) {
      await store.add(message(connectionId, text, { payloadBytes }))
    }
    for (const remove of [false, true]) {
      const [expectation, label] = [['1', '3'], remove ? 'removing' : 'reading'] as const
      t.same(texts(await store.take({ ...take, connectionId, limitBytes: 1_000, remove })), expectation, label)
    }
    t.same(texts(await store.take({ ...take, connectionId, limitBytes: 1_000, remove: true })), ['2'])
    t.same(texts(await store.take({ ...take, connectionId, limitBytes: 1_000, remove: true })), ['4', '5'])
  })

  t.test('sixteen concurrent callers that delete as they take share the messages, none twice, each in order', async (t) => {
    const connectionId = newId()
    await fill(connectionId, 1, 500)
    const drain = async (own: MessageStore) => {
      const mine: string[][] = []
      for (;;) {
        const batch = texts(await own.take({ ...take, connectionId, limit: 7, remove: true }))
        if (batch.length === 0) return mine
        mine.push(batch)
      }
    }
    const batches = (await Promise.all(Array.from({ length: 16 }, (_, i) => drain(stores[i % 2]!)))).flat()
    t.ok(
      batches.every((batch) => batch.every((text, i) => i === 0 || Number(text) > Number(batch[i - 1]))),
      'each batch ascends',
    )
    t.same(
      batches.flat().sort((a, b) => Number(a) - Number(b)),
      numbers(1, 500),
    )
  })

  t.test('removing is idempotent, and unknown ids are fine', async (t) => {
    const connectionId = newId()
    const ids = await fill(connectionId, 1, 3)
    await store.remove(connectionId, [ids[0]!, ids[0]!, 'unknown', '', '1', '999999999999999999-zzzzzz', `${ids[1]!.split('-')[0]}-zz`])
    await other.remove(connectionId, [ids[0]!])
    await store.remove(connectionId, [])
    await store.remove(newId(), ids)
    t.same(texts(await store.take({ ...take, connectionId })), ['2', '3'])
  })

  t.test('depth counts messages and bytes', async (t) => {
    const connectionId = newId()
    t.same(await store.depth(connectionId), { messages: 0, bytes: 0 })
    await store.add(message(connectionId, '1', { payloadBytes: 100 }))
    await store.add(message(connectionId, '2', { payloadBytes: 23 }))
    t.same(await other.depth(connectionId), { messages: 2, bytes: 123 })
  })

  t.test('takes of many connections at once: each gets its own page, whatever the others are', async (t) => {
    const connections = Array.from({ length: 40 }, newId)
    for (const [i, connectionId] of connections.entries()) await fill(connectionId, 1, i % 7)
    const [live, large, filtered, gone] = [newId(), newId(), newId(), newId()]
    await sessions.open({ connectionId: live, sessionId: 's' })
    await fill(live, 1, 3)
    const long = 'x'.repeat(50_000)
    for (const n of numbers(1, 3)) await store.add(message(large, `${n} ${long}`))
    await store.add(message(filtered, '1', { recipientDids: [DID_B] }))
    await fill(filtered, 2, 2)
    await fill(gone, 1, 2)
    const asked = [
      ...connections.map((connectionId) => ({ connectionId, limit: 5 })),
      { connectionId: live, limit: 2 },
      { connectionId: large, limit: 2 },
      { connectionId: filtered, limit: 5, recipientDid: DID_B },
      { connectionId: gone, limit: 5, remove: true },
      { connectionId: connections[6]!, limit: 2 },
      { connectionId: connections[6]!, limit: 5, limitBytes: message(newId(), '1').payloadBytes * 3 },
    ]
    const pages = await Promise.all(asked.map((one) => store.take({ ...take, ...one })))
    t.same(pages.map(texts), [
      ...connections.map((_, i) => numbers(1, Math.min(5, i % 7))),
      numbers(1, 2),
      [`1 ${long}`, `2 ${long}`],
      ['1'],
      numbers(1, 2),
      numbers(1, 2),
      numbers(1, 3),
    ])
    const again = await Promise.all([live, large, gone].map((connectionId) => store.take({ ...take, connectionId, limit: 2 })))
    t.same(again.map(texts), [['3'], [`1 ${long}`, `2 ${long}`], []], 'what was taken in a live session is in flight, and only that')
  })

  t.test('a message is stored on top of no more than it says, and nothing of it is otherwise', async (t) => {
    const [connectionId, busy] = [newId(), newId()]
    const size = message(connectionId, '1').payloadBytes
    const few = { messages: 2, bytes: 2 * size }
    const refused = { code: 'quota_exceeded' }
    for (const n of numbers(1, 3)) await store.add(message(connectionId, n, { ifAtMost: few }))
    await t.rejects(store.add(message(connectionId, '4', { ifAtMost: few })), refused, 'more messages')
    await t.rejects(store.add(message(connectionId, '4', { ifAtMost: { messages: 5, bytes: 3 * size - 1 } })), refused, 'more bytes')
    await t.rejects(store.add(message(connectionId, '4', { ifAtMost: few, idempotencyKey: 'key' })), refused, 'with a key')
    const keyed = message(connectionId, '4', { ifAtMost: { messages: 3, bytes: 3 * size }, idempotencyKey: 'key' })
    const { id } = await store.add(keyed)
    t.equal(await idOf(store.add({ ...keyed, ifAtMost: { messages: 0, bytes: 0 } })), id, 'it is there already')

    // Others are stored with it, also to the same connection.
    const together = [
      store.add(message(connectionId, '5')),
      store.add(message(busy, '1', { ifAtMost: few })),
      store.add(message(connectionId, 'never', { ifAtMost: few })),
      store.add(message(busy, '2', { ifAtMost: few })),
    ]
    const codes = (await Promise.allSettled(together)).map((result) => result.status === 'fulfilled' || (result.reason as CallError).code)
    t.same(codes, [true, true, 'quota_exceeded', true])
    t.same(texts(await other.take({ ...take, connectionId })), numbers(1, 5))
    t.same(texts(await other.take({ ...take, connectionId: busy })), numbers(1, 2))
  })

  t.test('expired messages are neither counted nor taken, and are deleted', async (t) => {
    const connectionId = newId()
    await fill(connectionId, 1, 3)
    t.equal(await expiring.count(connectionId), 3)
    while ((await expiring.count(connectionId)) > 0) await new Promise((resolve) => setTimeout(resolve, 50))
    t.same(await expiring.take({ ...take, connectionId }), [])
    t.same(await expiring.take({ ...take, connectionId, remove: true }), [])
    t.equal(await store.count(connectionId), 3, 'they are still there for a store that keeps them longer')
    const keyed = message(newId(), '1', { idempotencyKey: 'key' })
    const id = await idOf(store.add(keyed))
    await new Promise((resolve) => setTimeout(resolve, 1_100))
    let deleted = 0
    for (let batch = -1; batch !== 0; deleted += batch) batch = await expiring.expire(2)
    t.ok(deleted >= 3)
    t.equal(await store.count(connectionId), 0)
    t.not(await idOf(store.add(keyed)), id, 'a key is free again when its message has expired')
    await store.remove(keyed.connectionId, [await idOf(store.add(keyed))])
    t.ok(await store.idOfKey(keyed), 'and is remembered when it was removed')
  })

  t.test('sessions: the newest wins, and only the named one is ended', async (t) => {
    const connectionId = newId()
    t.equal(await sessions.isLive(connectionId), false)
    t.equal(await sessions.close({ connectionId }), undefined)
    const first = await sessions.open({ connectionId, sessionId: 'one' })
    t.equal(first.former, undefined)
    t.equal(await sessions.isLive(connectionId), true)
    const second = await sessions.open({ connectionId, sessionId: 'two' })
    t.ok(second.epoch > first.epoch)
    t.same(second.former, { epoch: first.epoch, instanceId: sessions.instanceId })
    t.equal(await sessions.close({ connectionId, epoch: first.epoch }), undefined, 'the late remove of the former owner')
    t.equal(await sessions.close({ connectionId, sessionId: 'one' }), undefined)
    await sessions.closeMany([{ connectionId, epoch: first.epoch }])
    t.equal(await sessions.isLive(connectionId), true)
    t.same(await sessions.close({ connectionId, sessionId: 'two' }), { epoch: second.epoch, instanceId: sessions.instanceId })
    t.equal(await sessions.isLive(connectionId), false)
  })

  t.test('sessions: without a socket one lasts as long as it was told', async (t) => {
    const connectionId = newId()
    await sessions.open({ connectionId, sessionId: 'rest', ttlMs: 300 })
    t.equal(await sessions.isLive(connectionId), true)
    while (await sessions.isLive(connectionId)) await new Promise((resolve) => setTimeout(resolve, 20))
    t.equal(await sessions.close({ connectionId }), undefined, 'there is nothing left to end')
  })

  t.test('in flight: what was taken during a live session is hidden until the lease runs out or the session ends', async (t) => {
    const connectionId = newId()
    await fill(connectionId, 1, 4)
    const { epoch } = await sessions.open({ connectionId, sessionId: 's' })
    t.same(texts(await store.take({ ...take, connectionId, limit: 2 })), ['1', '2'])
    t.equal(await other.count(connectionId), 2)
    t.same(texts(await other.take({ ...take, connectionId, limit: 2, leaseMs: 200 })), ['3', '4'])
    t.same(await store.take({ ...take, connectionId, remove: true }), [], 'not handed out a second time')
    while ((await store.count(connectionId)) === 0) await new Promise((resolve) => setTimeout(resolve, 20))
    t.same(texts(await store.take({ ...take, connectionId })), ['3', '4'], 'the short lease ran out')
    await sessions.close({ connectionId, epoch })
    t.equal(await store.count(connectionId), 4, 'the end of the session releases at once')
    t.same(texts(await store.take({ ...take, connectionId })), ['1', '2', '3', '4'])
  })

  t.test('in flight: a new session releases what the former one had', async (t) => {
    const connectionId = newId()
    await fill(connectionId, 1, 2)
    await sessions.open({ connectionId, sessionId: 'one' })
    await store.take({ ...take, connectionId })
    t.equal(await store.count(connectionId), 0)
    await sessions.open({ connectionId, sessionId: 'two' })
    t.equal(await store.count(connectionId), 2)
  })

  t.test('a session without a socket that is renewed keeps what it has in flight; under another name it releases it', async (t) => {
    const connectionId = newId()
    await fill(connectionId, 1, 2)
    const first = await sessions.open({ connectionId, sessionId: 'poller', ttlMs: 60_000 })
    await store.take({ ...take, connectionId })
    const second = await sessions.open({ connectionId, sessionId: 'poller', ttlMs: 60_000 })
    t.same(second, { epoch: first.epoch, former: undefined })
    t.equal(await store.count(connectionId), 0)
    const third = await sessions.open({ connectionId, sessionId: 'another', ttlMs: 60_000 })
    t.ok(third.epoch > first.epoch)
    t.equal(await store.count(connectionId), 2)
    const withSocket = await sessions.open({ connectionId, sessionId: 'another' })
    t.ok(withSocket.epoch > third.epoch, 'a socket is never the same session')
  })

  t.test('in flight: leases of 0 ms switch it off', async (t) => {
    const connectionId = newId()
    await fill(connectionId, 1, 2)
    await sessions.open({ connectionId, sessionId: 's' })
    t.same(texts(await store.take({ ...take, connectionId, leaseMs: 0 })), ['1', '2'])
    t.same(texts(await store.take({ ...take, connectionId, leaseMs: 0 })), ['1', '2'])
    t.equal(await store.count(connectionId), 2)
  })

  t.test('sixteen concurrent takers during a live session get each message once', async (t) => {
    const connectionId = newId()
    await fill(connectionId, 1, 200)
    await sessions.open({ connectionId, sessionId: 's' })
    const drain = async (own: MessageStore) => {
      const mine: string[] = []
      for (;;) {
        const batch = texts(await own.take({ ...take, connectionId, limit: 7 }))
        if (batch.length === 0) return mine
        mine.push(...batch)
      }
    }
    const all = (await Promise.all(Array.from({ length: 16 }, (_, i) => drain(stores[i % 2]!)))).flat()
    t.same(
      all.sort((a, b) => Number(a) - Number(b)),
      numbers(1, 200),
    )
  })

  t.test('claim: what arrived during the session, once, in order; the backlog is not touched', async (t) => {
    const connectionId = newId()
    await fill(connectionId, 1, 3)
    const { epoch } = await sessions.open({ connectionId, sessionId: 's' })
    t.same(await store.claim({ ...claim, connectionId, epoch }), { messages: [], more: false, state: 'current' })
    await fill(connectionId, 4, 9)
    const first = await store.claim({ ...claim, connectionId, epoch, limit: 4 })
    t.same(texts(first.messages), ['4', '5', '6', '7'])
    t.equal(first.more, true)
    const second = await other.claim({ ...claim, connectionId, epoch })
    t.same(texts(second.messages), ['8', '9'])
    t.equal(second.more, false)
    t.equal(await store.count(connectionId), 3, 'pushed messages are hidden from the count')
    t.equal((await store.take({ ...take, connectionId })).length, 9, 'and take still returns them')
  })

  t.test('claim: a session that is not the current one gets nothing', async (t) => {
    const connectionId = newId()
    const { epoch } = await sessions.open({ connectionId, sessionId: 'one' })
    await sessions.open({ connectionId, sessionId: 'two' })
    await fill(connectionId, 1, 2)
    t.same(await store.claim({ ...claim, connectionId, epoch }), { messages: [], more: false, state: 'replaced' })
    t.equal(await store.count(connectionId), 2)
    await sessions.close({ connectionId })
    t.equal((await store.claim({ ...claim, connectionId, epoch })).state, 'ended')
  })

  t.test('claim: the window of bytes is kept, and a larger message goes alone', async (t) => {
    const connectionId = newId()
    const { epoch } = await sessions.open({ connectionId, sessionId: 's' })
    for (const [text, payloadBytes] of [
      ['1', 600],
      ['2', 600],
      ['3', 9_000],
    ] as const) {
      await store.add(message(connectionId, text, { payloadBytes }))
    }
    const limited = { ...claim, connectionId, epoch, limitBytes: 1_000 }
    const first = await store.claim(limited)
    t.same(
      first.messages.map(({ payloadBytes }) => payloadBytes),
      [600],
    )
    t.equal(first.more, true)
    t.same(await store.claim({ ...limited, limitBytes: 400, alone: false }), { messages: [], more: true, state: 'current' })
    t.same(texts((await store.claim(limited)).messages), ['2'])
    t.same((await store.claim({ ...limited, alone: false })).messages, [])
    t.same(texts((await store.claim(limited)).messages), ['3'])
  })

  t.test('an add claims its message for the current session, as claim does', async (t) => {
    const connectionId = newId()
    await fill(connectionId, 1, 2)
    const { epoch } = await sessions.open({ connectionId, sessionId: 's' })
    const claimFor = { epoch, after: undefined, leaseMs: 30_000 }
    const first = await store.add(message(connectionId, '3', { claimFor }))
    const second = await store.add(message(connectionId, '4', { claimFor: { ...claimFor, after: first.id } }))
    t.ok(first.claimed && second.claimed, 'the backlog is not in its way')
    t.same(await store.claim({ ...claim, connectionId, epoch }), { messages: [], more: false, state: 'current' })
    t.equal(await other.count(connectionId), 2, 'it is hidden from the count')
    const taken = await store.take({ ...take, connectionId })
    t.same(texts(taken), ['1', '2', '3', '4'], 'and take still returns it')
    t.same(
      taken.slice(2).map(({ receivedAt }) => receivedAt),
      [first, second].map(({ claimed }) => claimed?.receivedAt),
    )
    await sessions.close({ connectionId, epoch })
    t.equal(await store.count(connectionId), 4, 'the end of the session releases it')
  })

  t.test('an add claims nothing while something that the session was not given comes before', async (t) => {
    const connectionId = newId()
    const { epoch } = await sessions.open({ connectionId, sessionId: 's' })
    const claimFor = { epoch, after: undefined, leaseMs: 30_000 }
    await other.add(message(connectionId, '1')) // its hint has not come yet
    t.notOk((await store.add(message(connectionId, '2', { claimFor }))).claimed)
    const { messages } = await store.claim({ ...claim, connectionId, epoch })
    t.same(texts(messages), ['1', '2'])
    const after = messages.at(-1)!.id
    const [plain, behind, alone] = await Promise.all([
      store.add(message(connectionId, '3')),
      store.add(message(connectionId, '4', { claimFor: { ...claimFor, after } })),
      store.add(message(newId(), '5', { claimFor })),
    ])
    t.notOk(plain.claimed)
    t.notOk(behind.claimed, 'what is written by the same statement counts too')
    t.notOk(alone.claimed, 'the session of another connection')
    t.same(texts((await store.claim({ ...claim, connectionId, epoch })).messages), ['3', '4'])
  })

  t.test('an add claims nothing for a session that is not the current one, or when its key is known', async (t) => {
    const connectionId = newId()
    const { epoch } = await sessions.open({ connectionId, sessionId: 'one' })
    const claimFor = { epoch, after: undefined, leaseMs: 30_000 }
    const keyed = message(connectionId, '1', { claimFor, idempotencyKey: 'key' })
    const first = await store.add(keyed)
    t.ok(first.claimed)
    t.same(await store.add(keyed), { id: first.id })
    const { epoch: newer } = await sessions.open({ connectionId, sessionId: 'two' })
    t.notOk((await store.add(message(connectionId, '2', { claimFor }))).claimed)
    t.equal(await store.count(connectionId), 2)
    t.same(texts((await store.claim({ ...claim, connectionId, epoch: newer })).messages), ['2'])
  })

  t.test('claim: what an add claimed and nobody sent, because its answer was lost, is found by what was sent', async (t) => {
    const connectionId = newId()
    const { epoch } = await sessions.open({ connectionId, sessionId: 's' })
    const claimFor = { epoch, after: undefined, leaseMs: 30_000 }
    const sent = await store.add(message(connectionId, '1', { claimFor }))
    await store.add(message(connectionId, '2', { claimFor: { ...claimFor, after: sent.id } }))
    t.same((await store.claim({ ...claim, connectionId, epoch })).messages, [])
    t.same(texts((await store.claim({ ...claim, connectionId, epoch, sent: [sent.id] })).messages), ['2'])
    t.same((await store.claim({ ...claim, connectionId, epoch, sent: [sent.id] })).messages, [], 'once')
  })

  t.test('waiting names the connections of this instance for which there is something to deliver', async (t) => {
    const [quiet, backlog, waiting, delivered, closed] = Array.from({ length: 5 }, newId) as [string, string, string, string, string]
    await fill(backlog, 1, 1)
    const epochs = new Map<string, number>()
    for (const connectionId of [quiet, backlog, waiting, delivered, closed]) {
      epochs.set(connectionId, (await sessions.open({ connectionId, sessionId: 's' })).epoch)
    }
    for (const connectionId of [waiting, delivered, closed]) await fill(connectionId, 1, 1)
    await store.claim({ ...claim, connectionId: delivered, epoch: epochs.get(delivered)! })
    await sessions.close({ connectionId: closed })
    const found = (await sessions.waiting(30_000)).map(({ connectionId }) => connectionId)
    t.same(
      [quiet, backlog, waiting, delivered, closed].filter((connectionId) => found.includes(connectionId)),
      [waiting],
    )
    const among = (connectionIds: string[]) => sessions.waiting(30_000, connectionIds)
    t.same(
      (await among([quiet, waiting, delivered, newId()])).map(({ connectionId }) => connectionId),
      [waiting],
    )
    t.same(await among([quiet, delivered]), [])
  })

  t.test('an add tells whether anybody is live elsewhere, each of those that are stored together for itself', async (t) => {
    const [alone, live, held, silent] = Array.from({ length: 4 }, newId) as [string, string, string, string]
    await sessions.open({ connectionId: live, sessionId: 's' })
    await sessions.open({ connectionId: silent, sessionId: 's', ttlMs: 60_000 })
    const { epoch } = await sessions.open({ connectionId: held, sessionId: 's' })
    const claimFor = { epoch, after: undefined, leaseMs: 30_000 }
    for (const extra of [{}, { idempotencyKey: 'key' }, { ifAtMost: { messages: 100, bytes: 100_000 } }]) {
      const added = await Promise.all([
        other.add(message(alone, '1', extra)),
        other.add(message(live, '1', extra)),
        other.add(message(silent, '1', extra)),
        other.add(message(held, '1', { ...extra, claimFor })),
      ])
      t.same(
        added.map(({ nobodyElseIsLive, claimed }) => [nobodyElseIsLive, claimed !== undefined]),
        [
          [true, false],
          [undefined, false],
          [true, false],
          [undefined, true],
        ],
      )
      claimFor.after = added[3].id as never
    }
    t.equal((await store.add(message(live, '2'))).nobodyElseIsLive, true, 'its own sessions an instance knows by itself')
    await sessions.close({ connectionId: live })
    t.equal((await other.add(message(live, '3'))).nobodyElseIsLive, true)
    t.equal(
      (await other.add(message(live, '1', { idempotencyKey: 'key' }))).nobodyElseIsLive,
      undefined,
      'the first one may have told nobody',
    )
  })

  t.test('so do many that are stored together', async (t) => {
    const connections = Array.from({ length: 200 }, newId)
    const live = connections.filter((_, i) => i % 3 === 0)
    for (const connectionId of live) await sessions.open({ connectionId, sessionId: 's' })
    await sessions.open({ connectionId: connections[1]!, sessionId: 's', ttlMs: 60_000 })
    const awaited = async (through: StoreByPromise) => {
      const added = await Promise.all(connections.map((connectionId) => through.add(message(connectionId, '1'))))
      return connections.filter((_, i) => !added[i]!.nobodyElseIsLive)
    }
    t.same(await awaited(other), live)
    t.same(await awaited(store), [], 'its own sessions an instance knows by itself')
  })

  t.test('ending all sessions of the instance releases everything', async (t) => {
    const connectionId = newId()
    await fill(connectionId, 1, 2)
    await sessions.open({ connectionId, sessionId: 's' })
    await store.take({ ...take, connectionId })
    await sessions.closeAll()
    t.equal(await sessions.isLive(connectionId), false)
    t.equal(await store.count(connectionId), 2)
    await sessions.renew()
    t.equal(await sessions.isLive(connectionId), false, 'for good')
  })
}
