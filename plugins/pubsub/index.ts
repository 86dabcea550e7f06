import fastifyRedis from '@fastify/redis'
import fp from 'fastify-plugin'
import { Cluster, Redis } from 'ioredis'
import { clusterNodes, type Config } from '../../src/config.js'
import type { PubSub } from '../../src/ports.js'
import { connectOptions } from '../storage/migrate.js'
import { createInProcessPubSub } from './in-process.js'
import { createPostgresPubSub } from './postgres.js'
import { clusterOptions, createRedisPubSub, redisOptions } from './redis.js'

declare module 'fastify' {
  interface FastifyInstance {
    pubsub: PubSub
  }
}

/** Decorates `pubsub`: Redis or a Redis Cluster when configured, else the LISTEN/NOTIFY of DATABASE_URL, else this process alone. */
export default fp<{ config: Config }>(
  async (app, { config }) => {
    const client = redisClient(config)
    if (client) await app.register(fastifyRedis, { client: asReady(client) })
    const pubsub = client
      ? createRedisPubSub({ client, prefix: config.REDIS_PREFIX, log: app.log })
      : config.DATABASE_URL !== undefined
        ? createPostgresPubSub({ connect: connectOptions({ connectionString: config.DATABASE_URL }), log: app.log })
        : createInProcessPubSub()
    app.addHook('onClose', () => pubsub.close())
    app.decorate('pubsub', pubsub)
  },
  { name: 'pubsub' },
)

function redisClient(config: Config): Redis | Cluster | undefined {
  if (config.REDIS_URL !== undefined) return new Redis(config.REDIS_URL, redisOptions)
  if (config.REDIS_NODES === undefined) return undefined
  return new Cluster(clusterNodes(config.REDIS_NODES), {
    ...clusterOptions,
    natMap: config.REDIS_NAT_MAP === undefined ? undefined : natMap(config.REDIS_NAT_MAP),
    redisOptions: {
      ...redisOptions,
      username: config.REDIS_USERNAME,
      password: config.REDIS_PASSWORD,
      tls: config.REDIS_TLS ? {} : undefined,
    },
  })
}

function natMap(text: string): Record<string, { host: string; port: number }> {
  return Object.fromEntries(
    text.split(',').map((entry) => {
      const [inside, outside] = entry.split('=') as [string, string]
      return [inside.trim(), clusterNodes(outside)[0]!]
    }),
  )
}

/** @fastify/redis waits for a client that is not ready, and with Redis down the service would not start. */
function asReady<Client extends Redis | Cluster>(client: Client): Client {
  return new Proxy(client, { get: (target, key) => (key === 'status' ? 'ready' : (Reflect.get(target, key) as unknown)) })
}
