import pg from 'pg'
import t from 'tap'
import { createSaturation } from '../src/saturation.js'
import { message, newConnectionId, startService } from './helpers/service.js'

t.test('calls are refused when one after the other was slow, and only for as long as that is so', (t) => {
  let time = 0
  const { observe, isSaturated } = createSaturation(() => time)
  const observeAll = (latencies: number[]) => {
    for (const ms of latencies) observe(ms)
    return isSaturated()
  }
  const slow = Array<number>(20).fill(900)
  t.equal(isSaturated(), false)
  t.equal(observeAll([900, 900, 900]), false, 'a few slow calls say nothing')
  t.equal(observeAll(slow), true)
  t.equal(observeAll([5]), false, 'one was quick')
  t.equal(observeAll(slow), true)
  time += 60
  t.same([isSaturated(), isSaturated(), isSaturated()], [false, true, true], 'one is let in to find out')
  time += 1_000
  t.equal(isSaturated(), false, 'what was long ago says nothing')
  t.equal(observeAll([900]), true, 'but the next one does')
  t.end()
})

t.test('while the database stalls calls are refused at once and health is answered; soon after, all is well', async (t) => {
  const service = await startService(t)
  const client = await service.connect()
  const adds = (count: number) => Promise.all(Array.from({ length: count }, () => client.ask('addMessage', message(newConnectionId()))))
  t.match((await adds(20))[0], { result: String })
  const database = new pg.Client(service.databaseUrl)
  await database.connect()
  t.teardown(() => database.end())
  await database.query('BEGIN; LOCK TABLE queued_messages')

  let refused = false
  while (!refused) {
    const answers = await adds(20)
    t.ok(answers.every(({ error }) => error?.data.retryable))
    refused = answers.some(({ error }) => error?.data.code === 'overloaded')
  }
  const askedAt = performance.now()
  t.equal((await service.rest('GET', '/health')).status, 200)
  t.ok(performance.now() - askedAt < 1_000)

  await database.query('ROLLBACK')
  const freeAt = performance.now()
  while ((await adds(20)).some(({ error }) => error));
  t.ok(performance.now() - freeAt < 5_000, 'within 5 s')
})
