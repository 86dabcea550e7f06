import t from 'tap'
import { message, newConnectionId, startService } from './helpers/service.js'

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

t.test('a repeated idempotencyKey is answered with the first id, also when the queue is full by now', async (t) => {
  const full = await startService(t, { QUOTA_MESSAGES: '1' })
  const client = await full.connect()
  const connectionId = newConnectionId()
  const keyed = message(connectionId, 1, { idempotencyKey: 'key' })
  const id = await client.call('addMessage', keyed)
  t.equal(await client.call('addMessage', keyed), id)
  t.equal((await client.ask('addMessage', message(connectionId, 2))).error!.data.code, 'quota_exceeded')
  t.equal((await client.ask('addMessage', message(connectionId, 2, { idempotencyKey: 'other' }))).error!.data.code, 'quota_exceeded')
})
