import type { Test } from 'tap'
import type { Administration, MessageStore, NewMessage, Page, PageRequest, SessionDirectory } from '../../src/ports.js'
import { jsonBytes } from '../helpers/json.js'
import { byPromise } from '../helpers/store.js'

export interface AdministrationUnderTest {
  administration: Administration
  store: MessageStore
  sessions: SessionDirectory
  /** Runs a statement on the same data: for what only time would bring about. */
  alter(statement: string): Promise<unknown>
}

const DID = 'did:example:of-nobody-else'

/** The contract of the port Administration, on data of its own. Every backend runs it. */
export async function administrationContract(
  t: Test,
  { administration, sessions, alter, ...given }: AdministrationUnderTest,
): Promise<void> {
  const store = byPromise(given.store)
  const message = (connectionId: string, payloadBytes: number, more: Partial<NewMessage> = {}): NewMessage => {
    const payload = jsonBytes('{"ciphertext":"a secret text"}')
    return { connectionId, recipientDids: [DID], payload, payloadBytes, ...more }
  }
  const fill = (connectionId: string, count: number, payloadBytes = 10) =>
    Promise.all(Array.from({ length: count }, async () => (await store.add(message(connectionId, payloadBytes))).id))
  const seq = (id: string) => id.split('-')[0]!
  const claim = { limit: 256, limitBytes: 1_000_000, alone: true, leaseMs: 30_000 }

  /** `between` runs after each page. */
  async function all<Item>(
    ask: (page: PageRequest) => Promise<Page<Item>>,
    limit: number,
    between?: () => Promise<unknown>,
  ): Promise<Item[]> {
    const items: Item[] = []
    let cursor: string | undefined
    do {
      const page = await ask({ limit, cursor })
      t.ok(page.items.length <= limit)
      items.push(...page.items)
      cursor = page.next
      await between?.()
    } while (cursor !== undefined)
    return items
  }

  t.test('connections are listed by depth, by bytes and by age, whole and page by page', async (t) => {
    await alter('TRUNCATE queued_messages')
    t.same(await administration.connections({ by: 'depth', limit: 10 }), { items: [] })
    for (const [name, count, bytes] of [
      ['few', 1, 500],
      ['many', 7, 10],
      ['same 1', 3, 20],
      ['same 2', 3, 20],
      ['same 3', 3, 20],
      ['large', 2, 900],
    ] as const) {
      await fill(name, count, bytes)
    }
    await alter(`UPDATE queued_messages SET accepted_at = now() - interval '1 hour' WHERE connection_id = 'same 2'`)
    const orders = {
      depth: ['many', 'same 3', 'same 2', 'same 1', 'large', 'few'],
      bytes: ['large', 'few', 'many', 'same 3', 'same 2', 'same 1'],
      age: ['same 2', 'few', 'many', 'same 1', 'same 3', 'large'],
    }
    for (const by of ['depth', 'bytes', 'age'] as const) {
      for (const limit of [1, 2, 4, 6, 200]) {
        const found = await all((page) => administration.connections({ ...page, by }), limit)
        const names = found.map(({ connectionId }) => connectionId)
        t.same(names, orders[by], `${by}, ${limit} a page`)
      }
    }
    const [first] = (await administration.connections({ by: 'bytes', limit: 1 })).items
    t.match(first, { connectionId: 'large', messages: 2, bytes: 1_800, parked: 0, isLive: false })
  })

  t.test('what does not change is on one page exactly, whatever comes and goes', async (t) => {
    await alter('TRUNCATE queued_messages')
    const stays = Array.from({ length: 12 }, (_, n) => `stays ${n}`)
    for (const [n, name] of stays.entries()) await fill(name, 2 + (n % 3))
    let round = 0
    const stir = async () => {
      await fill(`new and deep ${round}`, 9)
      await fill(`new and flat ${round++}`, 1)
      await alter(`DELETE FROM queued_messages WHERE connection_id = 'new and deep ${round - 2}'`)
    }
    const found = await all((page) => administration.connections({ ...page, by: 'depth' }), 2, stir)
    const names = found.map(({ connectionId }) => connectionId).filter((name) => name.startsWith('stays'))
    t.same(names.sort(), stays.sort())
  })

  t.test('a cursor belongs to its list, and one that is nobody’s is refused', async (t) => {
    await alter('TRUNCATE queued_messages')
    await fill('a', 2)
    await fill('b', 2)
    const { next } = await administration.connections({ by: 'depth', limit: 1 })
    const nul = Buffer.from('["depth","1","a\\u0000"]').toString('base64url')
    const refused = { code: 'invalid_params', details: { field: 'cursor' } }
    await t.rejects(administration.connections({ by: 'bytes', limit: 1, cursor: next }), refused)
    await t.rejects(administration.parked({ limit: 1, cursor: next }), refused)
    await t.rejects(administration.messages({ connectionId: 'a', limit: 1, cursor: next }), refused)
    for (const cursor of [
      'x',
      nul,
      Buffer.from('["depth","1; DROP","a"]').toString('base64url'),
      Buffer.from('null').toString('base64url'),
    ])
      await t.rejects(administration.connections({ by: 'depth', limit: 1, cursor }), refused)
  })

  t.test('a connection is summed up, with its session', async (t) => {
    t.same(await administration.summary('unknown'), { messages: 0, bytes: 0, parked: 0 })
    t.equal(await administration.liveSession('unknown'), undefined)
    await store.add(message('summed up', 10, { receivedAt: '2020-02-29T12:00:00.000Z' }))
    await store.add(message('summed up', 32))
    const { oldestAcceptedAt, ...summary } = await administration.summary('summed up')
    t.same(summary, { messages: 2, bytes: 42, oldestReceivedAt: '2020-02-29T12:00:00.000Z', parked: 0 })
    t.ok(Math.abs(Date.parse(oldestAcceptedAt!) - Date.now()) < 60_000)

    await sessions.open({ connectionId: 'summed up', sessionId: 'socket' })
    const live = await administration.liveSession('summed up')
    t.match(live, { sessionId: 'socket', instanceId: sessions.instanceId, expiresAt: undefined })
    t.ok(Math.abs(Date.parse(live!.since) - Date.now()) < 60_000)
    t.equal(
      (await administration.connections({ by: 'age', limit: 200 })).items.find((item) => item.connectionId === 'summed up')?.isLive,
      true,
    )
    await sessions.open({ connectionId: 'summed up', sessionId: 'poller', ttlMs: 60_000 })
    t.match(await administration.liveSession('summed up'), { sessionId: 'poller', instanceId: undefined, expiresAt: /^\d{4}-.*Z$/ })
    await alter(`UPDATE live_sessions SET expires_at = now() WHERE connection_id = 'summed up'`)
    t.equal(await administration.liveSession('summed up'), undefined, 'what is over does not count')
  })

  t.test('since when a session is open is not changed by its renewal', async (t) => {
    const open = (sessionId: string) => sessions.open({ connectionId: 'renewed', sessionId, ttlMs: 60_000 })
    const since = async () => (await administration.liveSession('renewed'))!.since
    await open('poller')
    await alter(`UPDATE live_sessions SET opened_at = now() - interval '1 hour' WHERE connection_id = 'renewed'`)
    const first = await since()
    await open('poller')
    t.equal(await since(), first)
    await open('another')
    t.ok((await since()) > first)
  })

  t.test('messages are listed by what is known beside their content, in flight or not', async (t) => {
    const connectionId = 'listed'
    const ids = await fill(connectionId, 3, 7)
    await sessions.open({ connectionId, sessionId: 's' })
    await store.take({ connectionId, limit: 1, limitBytes: 1_000, remove: false, leaseMs: 30_000 })
    const { id } = await store.add(message(connectionId, 8, { recipientDids: [DID, 'did:other'] }))
    await store.claim({ ...claim, connectionId, epoch: (await sessions.open({ connectionId, sessionId: 'new' })).epoch })
    const { epoch } = await sessions.open({ connectionId, sessionId: 'newest' })
    t.notOk(
      (await administration.messages({ connectionId, limit: 10 })).items.some(({ inFlight }) => inFlight),
      'of a former session',
    )
    const late = await store.add(message(connectionId, 9))
    await store.claim({ ...claim, connectionId, epoch })
    await store.take({ connectionId, limit: 1, limitBytes: 1_000, remove: false, leaseMs: 30_000 })

    const found = await all((page) => administration.messages({ ...page, connectionId }), 2)
    t.same(
      found.map((item) => [item.id, item.bytes, item.recipientDids, item.deliveries, item.inFlight?.by]),
      [
        [ids[0], 7, 1, 0, 'take'],
        [ids[1], 7, 1, 0, undefined],
        [ids[2], 7, 1, 0, undefined],
        [id, 8, 2, 0, undefined],
        [late.id, 9, 1, 1, 'delivery'],
      ],
    )
    t.notMatch(JSON.stringify(found), /secret text|did:/)
    await alter(`UPDATE queued_messages SET in_flight_until = now() WHERE connection_id = '${connectionId}'`)
    t.notOk(
      (await administration.messages({ connectionId, limit: 10 })).items.some(({ inFlight }) => inFlight),
      'the lease is over',
    )
  })

  t.test('parked is exactly what no live session gets any more', async (t) => {
    await alter('TRUNCATE queued_messages')
    const [epochA, epochB] = [
      await sessions.open({ connectionId: 'a', sessionId: 's' }),
      await sessions.open({ connectionId: 'b', sessionId: 's' }),
    ]
    const ids = { a: await fill('a', 4), b: await fill('b', 3) }
    for (const id of [ids.a[1]!, ids.a[3]!, ids.b[0]!]) await alter(`UPDATE queued_messages SET deliveries = 5 WHERE seq = ${seq(id)}`)
    await alter(`UPDATE queued_messages SET deliveries = 4 WHERE seq = ${seq(ids.b[1]!)}`)
    const parked = await all((page) => administration.parked(page), 2)
    t.same(
      parked.map(({ connectionId, id, deliveries }) => [connectionId, id, deliveries]),
      [
        ['a', ids.a[1], 5],
        ['a', ids.a[3], 5],
        ['b', ids.b[0], 5],
      ],
    )
    t.notMatch(JSON.stringify(parked), /secret text|did:/)
    t.equal((await administration.summary('a')).parked, 2)
    const claimed = [
      ...(await store.claim({ ...claim, connectionId: 'a', epoch: epochA.epoch })).messages,
      ...(await store.claim({ ...claim, connectionId: 'b', epoch: epochB.epoch })).messages,
    ].map(({ id }) => id)
    t.same(claimed, [ids.a[0], ids.a[2], ids.b[1], ids.b[2]])
    t.equal((await administration.parked({ limit: 10 })).items.length, 4, 'the fifth delivery was the last')
    const taken = await store.take({ connectionId: 'a', limit: 10, limitBytes: 1_000, remove: false, leaseMs: 0 })
    t.equal(taken.length, 4, 'all of them can be taken')
  })

  t.test('a purge removes what was measured, by age and by id, and nothing else', async (t) => {
    const connectionId = 'purged'
    const ids = await fill(connectionId, 6)
    const other = await fill('not purged', 2)
    await alter(`UPDATE queued_messages SET accepted_at = now() - interval '1 hour' WHERE seq IN (${ids.slice(0, 3).map(seq).join(', ')})`)
    const left = async () => (await administration.messages({ connectionId, limit: 200 })).items.map(({ id }) => id)
    const wrongTag = `${ids[5]!.split('-')[0]}-zz`
    for (const [what, selection, expected] of [
      ['nothing of an unknown connection', { connectionId: 'unknown' }, []],
      ['no id', { connectionId, ids: [] }, []],
      ['ids', { connectionId, ids: [ids[0]!, ids[0]!, 'unknown', wrongTag, ...other] }, [ids[0]]],
      ['an id that is not old enough', { connectionId, ids: [ids[5]!], olderThanSeconds: 60 }, []],
      ['what is old', { connectionId, olderThanSeconds: 60 }, [ids[1], ids[2]]],
      ['everything', { connectionId }, ids.slice(3)],
    ] as const) {
      const before = await left()
      const { messages, bytes, upTo } = await administration.measure(selection)
      t.same([messages, bytes], [expected.length, expected.length * 10], `${what} is measured`)
      t.same(await left(), before, 'measuring changes nothing')
      if (upTo === undefined) {
        t.equal(messages, 0)
        continue
      }
      const purged = await administration.purge({ ...selection, upTo })
      t.same([purged.ids.sort(), purged.bytes], [[...expected].sort(), bytes], `${what} is purged`)
      t.same(await administration.purge({ ...selection, upTo }), { ids: [], bytes: 0 }, 'and then there is no more')
      t.same(
        await left(),
        before.filter((id) => !purged.ids.includes(id)),
      )
    }
    t.equal((await administration.summary('not purged')).messages, 2)
  })

  t.test('a purge goes in short transactions, and leaves what arrived after it was measured', async (t) => {
    const connectionId = 'purged in parts'
    await fill(connectionId, 2_500)
    const { messages, upTo } = await administration.measure({ connectionId })
    t.equal(messages, 2_500)
    const [late] = await fill(connectionId, 1)
    const parts: number[] = []
    for (;;) {
      const { ids } = await administration.purge({ connectionId, upTo: upTo! })
      if (ids.length === 0) break
      parts.push(ids.length)
    }
    t.ok(parts.length > 2, `${parts.join(' + ')}`)
    t.same(
      (await administration.messages({ connectionId, limit: 10 })).items.map(({ id }) => id),
      [late],
    )

    await fill('purged by size', 3, 20 * 1024 * 1024)
    const large = await administration.measure({ connectionId: 'purged by size' })
    t.equal((await administration.purge({ connectionId: 'purged by size', upTo: large.upTo! })).ids.length, 1, 'large messages')
  })
}
