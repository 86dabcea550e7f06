import t from 'tap'
import { message, newConnectionId, startService, testDatabase } from './helpers/service.js'

const service = await startService(t)

t.test('a message can be added, counted, taken and removed', async (t) => {
  const client = await service.connect()
  const connectionId = newConnectionId()
  const id = await client.call('addMessage', message(connectionId))
  t.type(id, 'string')
  t.equal(await client.call('getAvailableMessageCount', { connectionId }), 1)
  const [taken] = await client.call('takeFromQueue', { connectionId })
  t.equal(taken.id, id)
  t.same(taken.encryptedMessage, message(connectionId).payload)
  t.equal(await client.call('removeMessages', { connectionId, messageIds: [id] }), null)
  t.equal(await client.call('getAvailableMessageCount', { connectionId }), 0)
})

t.test('a queue takes what its quota says, in order, and no message more', async (t) => {
  const settings = { QUOTA_MESSAGES: '200', DATABASE_URL: await testDatabase(t) }
  const [first, second] = [await startService(t, settings), await startService(t, settings)]
  const connectionId = newConnectionId()
  const add = (client: Awaited<ReturnType<typeof first.connect>>, n: number) => client.ask('addMessage', message(connectionId, n))
  const client = await first.connect()
  const answers = await Promise.all(Array.from({ length: 250 }, (_, i) => add(client, i)))
  t.same(
    answers.flatMap(({ error }) => error?.data.code ?? []),
    Array(50).fill('quota_exceeded'),
  )
  const other = await second.connect()
  t.equal((await add(other, 250)).error!.data.code, 'quota_exceeded', 'an instance that knows nothing of the queue looks before it adds')

  const taken = await other.call('takeFromQueue', { connectionId })
  t.same(
    taken.map(({ id }: { id: string }) => id),
    answers.flatMap(({ result }) => result ?? []),
    'what was added first came first',
  )
  await other.call('removeMessages', { connectionId, messageIds: taken.slice(0, 1).map(({ id }: { id: string }) => id) })
  t.type((await add(client, 251)).result, 'string', 'there is room again')
  t.equal((await add(other, 252)).error!.data.code, 'quota_exceeded')
})

t.test('an instance that knows nothing of a queue in which more than a few wait adds to it at once, in order', async (t) => {
  const settings = { DATABASE_URL: await testDatabase(t) }
  const [first, second] = [await startService(t, settings), await startService(t, settings)]
  const connectionId = newConnectionId()
  const client = await first.connect()
  const add = (from: number, count: number, to: typeof client) =>
    Promise.all(Array.from({ length: count }, (_, i) => to.call('addMessage', message(connectionId, from + i))))
  const ids = await add(0, 40, client)
  ids.push(...(await add(40, 10, await second.connect())))
  const taken = await client.call('takeFromQueue', { connectionId })
  t.same(
    taken.map(({ id }: { id: string }) => id),
    ids,
  )
})

t.test('a repeated idempotencyKey is answered with the first id, also when the queue is full by now', async (t) => {
  const full = await startService(t, { QUOTA_MESSAGES: '1' })
  const client = await full.connect()
  const connectionId = newConnectionId()
  const keyed = message(connectionId, 1, { idempotencyKey: 'key' })
  const hints: string[] = []
  full.inside.pubsub.publish = (hinted) => hints.push(hinted)
  const id = await client.call('addMessage', keyed)
  t.same(hints, [], 'nobody is live')
  t.equal(await client.call('addMessage', keyed), id)
  t.same(hints, [connectionId], 'the instance of the first one may have died before it told anybody')
  t.equal((await client.ask('addMessage', message(connectionId, 2))).error!.data.code, 'quota_exceeded')
  t.equal((await client.ask('addMessage', message(connectionId, 2, { idempotencyKey: 'other' }))).error!.data.code, 'quota_exceeded')
})
