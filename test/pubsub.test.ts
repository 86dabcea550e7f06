import { Cluster, Redis } from 'ioredis'
import t, { type Test } from 'tap'
import { createInProcessPubSub } from '../plugins/pubsub/in-process.js'
import { createPostgresPubSub } from '../plugins/pubsub/postgres.js'
import { clusterOptions, createRedisPubSub, redisOptions } from '../plugins/pubsub/redis.js'
import { connectOptions } from '../plugins/storage/migrate.js'
import type { PubSub } from '../src/ports.js'
import { pubsubContract } from './contracts/pubsub.js'
import { makeCertificate } from './helpers/certificate.js'
import { startFragilePostgres } from './helpers/fragile-postgres.js'
import { startServer } from './helpers/process.js'
import { startProxy, type Proxy } from './helpers/proxy.js'
import { startCluster, startRedis } from './helpers/redis.js'
import { connect, message, testDatabase } from './helpers/service.js'
import { until } from './helpers/until.js'

const withoutRedis = (process.env.SKIP_TESTS ?? '').split(',').includes('redis') && 'left out by SKIP_TESTS=redis'

function recorder() {
  const lines: string[] = []
  const write = (_facts: object, text: string) => void lines.push(text)
  return { lines, debug: () => {}, info: write, warn: write, error: write }
}

/** Two instances of a backend, closed after the test. */
function pair(t: { teardown(end: () => unknown): void }, create: () => PubSub): [PubSub, PubSub] {
  const both: [PubSub, PubSub] = [create(), create()]
  t.teardown(() => Promise.all(both.map((pubsub) => pubsub.close())))
  return both
}

t.test('in process', async (t) => {
  const pubsub = createInProcessPubSub()
  await pubsubContract(t, [pubsub, pubsub])
})

t.test('Postgres LISTEN/NOTIFY', async (t) => {
  const connect = connectOptions({ connectionString: await testDatabase(t) })
  await pubsubContract(
    t,
    pair(t, () => createPostgresPubSub({ connect, log: recorder() })),
  )
})

t.test('Redis', { skip: withoutRedis }, async (t) => {
  const redis = await startRedis()
  t.teardown(() => redis.kill())
  await pubsubContract(
    t,
    pair(t, () => createRedisPubSub({ client: new Redis(redis.url, redisOptions), prefix: 'mpr:', log: recorder() })),
  )
})

t.test('Redis with an ACL user that may use our channels only', { skip: withoutRedis }, async (t) => {
  const redis = await startRedis()
  t.teardown(() => redis.kill())
  const admin = new Redis(redis.url)
  await admin.acl(
    'SETUSER',
    'mediator',
    'on',
    '>secret',
    'resetchannels',
    '&mine:*',
    '-@all',
    '+@pubsub',
    '+ping',
    '+info',
    '+client',
    '+hello',
    '+select',
    '+readonly',
  )
  await admin.acl('SETUSER', 'default', 'off')
  admin.disconnect()
  const url = redis.url.replace('//', '//mediator:secret@')
  await pubsubContract(
    t,
    pair(t, () => createRedisPubSub({ client: new Redis(url, redisOptions), prefix: 'mine:', log: recorder() })),
  )
})

t.test('Redis Cluster', { skip: withoutRedis }, async (t) => {
  const cluster = await startCluster()
  t.teardown(() => cluster.stop())
  const nodes = cluster.nodes.map(({ port }) => ({ host: '127.0.0.1', port }))
  const create = () =>
    createRedisPubSub({ client: new Cluster(nodes, { ...clusterOptions, redisOptions }), prefix: 'mpr:', log: recorder() })
  await pubsubContract(t, pair(t, create))
})

t.test(
  'Redis that is down at boot, comes, is killed and comes back empty: one log line per change, and everything subscribed is heard',
  { skip: withoutRedis },
  async (t) => {
    const gone = await startRedis()
    await gone.kill()
    const log = recorder()
    const pubsub = createRedisPubSub({ client: new Redis(gone.url, redisOptions), prefix: 'mpr:', log })
    t.teardown(() => pubsub.close())
    let hints = 0
    const started = Date.now()
    await pubsub.subscribe('early', () => hints++)
    t.ok(Date.now() - started < 1_000, 'subscribe does not wait for it')
    pubsub.publish('early')
    await until(() => log.lines.length === 1)
    for (const round of [1, 2]) {
      const redis = await startRedis({ port: gone.port })
      await until(() => pubsub.isUp())
      if (round === 2) await pubsub.subscribe('late', () => hints++)
      const before = hints
      await until(() => {
        pubsub.publish('early')
        return hints > before
      })
      await redis.kill()
      await until(() => !pubsub.isUp())
    }
    t.equal(log.lines.length, 5, 'down, up, down, up, down')
    t.match(log.lines[0], /bus is down/)
    t.match(log.lines[1], /answers again/)
  },
)

for (const fault of ['blackHole', 'cut'] as const) {
  t.test(
    `a connection to Redis that is ${fault === 'cut' ? 'cut' : 'swallowed by a black hole'} is noticed and renewed`,
    { skip: withoutRedis },
    async (t) => {
      const redis = await startRedis()
      const proxy = await startProxy(redis)
      const log = recorder()
      const pubsub = createRedisPubSub({ client: new Redis(`redis://127.0.0.1:${proxy.port}`, redisOptions), prefix: 'mpr:', log })
      t.teardown(async () => {
        await pubsub.close()
        proxy.close()
        await redis.kill()
      })
      let hints = 0
      await pubsub.subscribe('a', () => hints++)
      await until(() => pubsub.isUp())
      proxy[fault]()
      await until(() => !pubsub.isUp())
      const started = Date.now()
      await pubsub.subscribe('b', () => hints++)
      t.ok(Date.now() - started < 1_000, 'subscribe does not wait')
      proxy.heal()
      await until(() => pubsub.isUp())
      const outside = new Redis(redis.url)
      t.teardown(() => outside.disconnect())
      for (const channel of ['mpr:a', 'mpr:b']) {
        const before = hints
        await until(() => {
          outside.publish(channel, '').catch(() => {})
          return hints > before
        })
      }
      t.ok(log.lines.length <= 2, 'one line for each change')
    },
  )
}

t.test('Postgres that cuts the listening connection is listened to again', async (t) => {
  const connect = connectOptions({ connectionString: await testDatabase(t) })
  const log = recorder()
  const pubsub = createPostgresPubSub({ connect, log })
  t.teardown(() => pubsub.close())
  let hints = 0
  await pubsub.subscribe('a', () => hints++)
  await until(() => pubsub.isUp())
  const { default: pg } = await import('pg')
  const admin = new pg.Client({ ...connect, password: connect.password })
  await admin.connect()
  t.teardown(() => admin.end())
  const { rows } = await admin.query<{ cut: number }>(
    'SELECT count(pg_terminate_backend(pid))::int AS cut FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()',
  )
  t.ok(rows[0]!.cut > 0)
  await until(() => {
    admin.query("SELECT pg_notify('message_pickup', '!a')").catch(() => {})
    return hints > 0
  })
})

t.test('a forged hint is only a reason to look', async (t) => {
  const connect = connectOptions({ connectionString: await testDatabase(t) })
  const pubsub = createPostgresPubSub({ connect, log: recorder() })
  t.teardown(() => pubsub.close())
  let hints = 0
  await pubsub.subscribe('a', () => hints++)
  await until(() => pubsub.isUp())
  const { default: pg } = await import('pg')
  const stranger = new pg.Client({ ...connect, password: connect.password })
  await stranger.connect()
  t.teardown(() => stranger.end())
  for (const payload of ['', 'a', '?', '{"connectionId":"a"}', '!', '!b', '!a'])
    await stranger.query("SELECT pg_notify('message_pickup', $1)", [payload])
  await until(() => hints > 0)
  t.equal(hints, 1)
})

/** Two services with these settings tell each other of a message. */
async function crosses(t: Test, settings: Record<string, string>): Promise<void> {
  const DATABASE_URL = await testDatabase(t)
  const [a, b] = [await startServer({ ...settings, DATABASE_URL }), await startServer({ ...settings, DATABASE_URL })]
  t.teardown(() => Promise.all([a.end('SIGKILL'), b.end('SIGKILL')]))
  for (const server of [a, b]) {
    for (const deadline = Date.now() + 10_000; !(await (await fetch(`${server.url}/ready`)).text()).includes('"pubsub":true');) {
      if (Date.now() > deadline) throw new Error(`the bus did not come up: ${JSON.stringify(server.log)}`)
    }
  }
  const [sender, owner] = [await connect(a.ws, t), await connect(b.ws, t)]
  for (let n = 0; n < 20; n++) {
    const connectionId = `connection ${n}`
    await owner.call('addLiveSession', { connectionId, sessionId: 's' })
    const added = performance.now()
    await sender.call('addMessage', message(connectionId, n))
    await owner.frame(({ method, params }) => method === 'messagesReceived' && params.connectionId === connectionId)
    t.ok(performance.now() - added < 1_000, 'by the bus, and not by the reconciler')
  }
}

t.test('REDIS_NAT_MAP: nodes of a Cluster that name themselves by addresses at which they are not', { skip: withoutRedis }, async (t) => {
  const shift = 5_000
  const cluster = await startCluster({ announceShift: shift })
  t.teardown(() => cluster.stop())
  const REDIS_NAT_MAP = cluster.nodes.map(({ port }) => `127.0.0.1:${port + shift}=127.0.0.1:${port}`).join(',')
  await crosses(t, { REDIS_NODES: cluster.list, REDIS_NAT_MAP, REDIS_PREFIX: 'other:' })
})

t.test('rediss://: TLS, with the certificate of a private authority', { skip: withoutRedis }, async (t) => {
  const { key, certificate } = makeCertificate(t, ['localhost'])
  const redis = await startRedis({
    args: (port) => [
      '--tls-port',
      String(port + 1),
      '--tls-cert-file',
      certificate,
      '--tls-key-file',
      key,
      '--tls-auth-clients',
      'no',
      '--requirepass',
      'secret',
    ],
    password: 'secret',
  })
  t.teardown(() => redis.kill())
  await crosses(t, { REDIS_URL: `rediss://:secret@localhost:${redis.port + 1}`, NODE_EXTRA_CA_CERTS: certificate })
})

t.test('a Postgres that gets slow once it is connected to is given up, asked again, and takes nothing with it', async (t) => {
  const postgres = await startFragilePostgres(t)
  const { user, database, port } = postgres
  let isSlow = true
  // From the first question of the connection that publishes, also when it is one that the driver asks by itself.
  const onAsked = (data: Buffer) => void (isSlow && /typarray|pg_notify/.test(data.toString('latin1')) && proxy.delay(() => 5_000))
  const proxy: Proxy = await startProxy({ port, onAsked })
  const log = recorder()
  const pubsub = createPostgresPubSub({ connect: { host: '127.0.0.1', port: proxy.port, user, database }, log })
  const rejections: unknown[] = []
  const onRejection = (reason: unknown) => rejections.push(reason)
  process.on('unhandledRejection', onRejection)
  t.teardown(async () => {
    process.off('unhandledRejection', onRejection)
    await pubsub.close()
    proxy.close()
  })
  await until(() => log.lines.length > 0)
  t.match(log.lines[0], /bus is down/)
  isSlow = false
  proxy.heal()
  await until(() => pubsub.isUp())
  t.same(rejections, [], 'a process dies of a rejection that nobody handles')
})
