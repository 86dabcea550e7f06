import { execFileSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { existsSync, readFileSync } from 'node:fs'
import pg from 'pg'
import { Histogram, Registry } from 'prom-client'
import t from 'tap'
import { createHistogram } from '../plugins/histogram.js'
import { DID, message, newConnectionId, startService, type Service } from './helpers/service.js'

const ops = (file: string) => readFileSync(new URL(`../ops/${file}`, import.meta.url), 'utf8')
const admin = createHash('sha256').update('admin').digest('hex')

async function scrape(service: Service, headers: Record<string, string> = {}): Promise<string> {
  const { status, body } = await service.rest('GET', '/metrics', undefined, headers)
  t.equal(status, 200)
  return body
}

/** The value of one line, or undefined. */
function value(text: string, line: string): number | undefined {
  const found = text.split('\n').find((candidate) => candidate.startsWith(`${line} `))
  return found === undefined ? undefined : Number(found.slice(line.length + 1))
}

t.test('calls are counted by method and outcome, over both transports, with their latency', async (t) => {
  const service = await startService(t, { QUOTA_MESSAGES: '2' })
  const client = await service.connect()
  const connectionId = newConnectionId()
  const body = { ...message(connectionId), connectionId: undefined }
  await client.call('addMessage', message(connectionId))
  t.equal((await service.rest('POST', `/v1/connections/${connectionId}/messages`, body)).status, 200)
  await client.ask('addMessage', message(connectionId))
  await client.ask('addMessage', {})
  await client.call('addLiveSession', { connectionId, sessionId: 's' })
  const text = await scrape(service)
  const calls = (method: string, outcome: string) => value(text, `mpr_call_duration_seconds_count{method="${method}",outcome="${outcome}"}`)
  t.equal(calls('addMessage', 'ok'), 2)
  t.equal(calls('addMessage', 'quota_exceeded'), 1)
  t.equal(calls('addMessage', 'invalid_params'), 1)
  t.equal(value(text, 'mpr_call_duration_seconds_bucket{le="+Inf",method="addMessage",outcome="ok"}'), 2)
  t.equal(value(text, 'mpr_quota_refusals_total'), 1)
  t.equal(value(text, 'mpr_sockets'), 1)
  t.equal(value(text, 'mpr_live_sessions'), 1)
  t.equal(value(text, 'mpr_calls_in_flight'), 0)
  t.equal(value(text, 'mpr_store_up'), 1)
  t.equal(value(text, 'mpr_pubsub_up'), 1)
})

t.test('a histogram says what that of prom-client says', async (t) => {
  const options = { name: 'call_seconds', help: 'Calls', buckets: [0.001, 0.01, 0.1, 1.5] }
  const [ours, theirs] = [new Registry(), new Registry()]
  const seriesOf = createHistogram<'method' | 'outcome'>(ours, options)
  const reference = new Histogram({ ...options, labelNames: ['method', 'outcome'], registers: [theirs] })
  for (const labels of [
    { method: 'addMessage', outcome: 'ok' },
    { method: 'addMessage', outcome: 'a "quoted"\\ one' },
    { method: 'takeFromQueue', outcome: 'ok' },
  ]) {
    const observe = seriesOf(labels)
    for (const value of [0, ...options.buckets, 0.0011, 0.5, 2, 1e9]) {
      observe(value)
      reference.observe(labels, value)
    }
  }
  t.equal(await ours.metrics(), await theirs.metrics())
  ours.resetMetrics()
  t.equal(value(await ours.metrics(), 'call_seconds_count{method="takeFromQueue",outcome="ok"}'), 0)
})

t.test('what is delivered again because its lease ran out is counted, and a first delivery is not', async (t) => {
  const service = await startService(t)
  const owner = await service.connect()
  const connectionId = newConnectionId()
  await owner.call('addLiveSession', { connectionId, sessionId: 's' })
  await owner.call('addMessage', message(connectionId, 1))
  const [first] = await owner.received(1)
  t.equal(value(await scrape(service), 'mpr_leases_expired_total'), 0)
  await service.inside.pg.pool.query(`UPDATE queued_messages SET in_flight_until = in_flight_until - interval '1 hour'`)
  await owner.call('addMessage', message(connectionId, 2)) // makes the session look
  const ids = (await owner.received(3)).map(({ id }) => id)
  t.equal(ids.filter((id) => id === first!.id).length, 2)
  t.equal(value(await scrape(service), 'mpr_leases_expired_total'), 1)
})

t.test('the queue is measured without reading it, and not for each scrape', async (t) => {
  const service = await startService(t)
  const client = await service.connect()
  await Promise.all(Array.from({ length: 30 }, () => client.call('addMessage', message(newConnectionId()))))
  const database = new pg.Client(service.databaseUrl)
  await database.connect()
  t.teardown(() => database.end())
  await database.query('ANALYZE queued_messages')
  const first = await scrape(service)
  t.equal(value(first, 'mpr_queue_messages'), 30)
  t.ok(value(first, 'mpr_queue_bytes')! >= 8_192)
  t.ok(value(first, 'mpr_queue_oldest_age_seconds')! > 0)
  await database.query('DELETE FROM queued_messages')
  t.equal(value(await scrape(service), 'mpr_queue_messages'), 30, 'the sample of a moment ago')
})

t.test('an empty queue is empty, whatever the statistics remember; without a store there is no figure', async (t) => {
  const service = await startService(t)
  const text = await scrape(service)
  t.equal(value(text, 'mpr_queue_messages'), 0)
  t.equal(value(text, 'mpr_queue_oldest_age_seconds'), 0)
  const broken = await startService(t)
  const database = new pg.Client(broken.databaseUrl)
  await database.connect()
  await database.query('ALTER TABLE queued_messages RENAME TO elsewhere')
  await database.end()
  const down = await scrape(broken)
  t.equal(value(down, 'mpr_store_up'), 0)
  t.equal(value(down, 'mpr_queue_messages'), undefined)
})

t.test('every metric that the dashboard and the alerts name exists', async (t) => {
  const service = await startService(t)
  const client = await service.connect()
  await client.call('addMessage', message(newConnectionId()))
  const text = await scrape(service)
  const exists = new Set([...text.matchAll(/^([a-z_0-9]+)[{ ]/gm)].map((match) => match[1]))
  const named = new Set(
    [...(ops('grafana-dashboard.json') + ops('alerts.yml')).matchAll(/\b(?:mpr|nodejs|process)_\w+/g)].map((match) => match[0]),
  )
  t.ok(named.size > 15, 'the names are found')
  for (const name of named) t.ok(exists.has(name), `${name} exists`)
  const ours = [...exists].filter((name) => name!.startsWith('mpr_') && !/_(bucket|sum|count)$/.test(name!))
  for (const name of ours) t.ok(named.has(name!), `${name} is shown`)
})

t.test('labels are names of this repository', async (t) => {
  const service = await startService(t, { API_KEYS: `the-operator:mediator+admin:${admin}` })
  const headers = { authorization: `Bearer ${admin}` }
  const client = await service.connect('/ws', headers)
  const connectionId = newConnectionId()
  await client.call('addMessage', message(connectionId, 0, { token: 'a-device-token' }))
  await client.ask('unknown-method', {})
  const text = await scrape(service, headers)
  for (const secret of [connectionId, DID, 'a-device-token', admin, 'the-operator', 'unknown-method'])
    t.notOk(text.includes(secret), secret)
  const labels = new Set([...text.matchAll(/[{,](\w+)="/g)].map((match) => match[1]!))
  for (const label of labels) {
    t.ok(
      ['method', 'outcome', 'state', 'le', 'quantile', 'kind', 'type', 'version', 'major', 'minor', 'patch', 'space'].includes(label),
      label,
    )
  }
})

const promtool = [process.env.PROMTOOL ?? '', ...(process.env.PATH ?? '').split(':').map((folder) => `${folder}/promtool`)].find((path) =>
  existsSync(path),
)
const skip = !promtool && 'no promtool: point PROMTOOL to it'
t.test('promtool accepts the rules', { skip }, async (t) => {
  t.match(execFileSync(promtool!, ['check', 'rules', 'ops/alerts.yml'], { encoding: 'utf8' }), /SUCCESS/)
})

t.test('promtool accepts the metrics', { skip }, async (t) => {
  const service = await startService(t)
  const ours = (await scrape(service)).split('\n').filter((line) => /^(# \w+ )?mpr_/.test(line))
  t.doesNotThrow(() => execFileSync(promtool!, ['check', 'metrics'], { input: `${ours.join('\n')}\n` }))
})
