import fp from 'fastify-plugin'
import type { PubSub } from '../../src/ports.js'
import { createInProcessPubSub } from './in-process.js'

declare module 'fastify' {
  interface FastifyInstance {
    pubsub: PubSub
  }
}

/** Decorates `pubsub`. */
export default fp(
  async (app) => {
    app.decorate('pubsub', createInProcessPubSub())
  },
  { name: 'pubsub' },
)
