import fp from 'fastify-plugin'
import { createCalls, type Calls } from '../src/calls.js'
import type { Config } from '../src/config.js'
import { createContract, type Contract, type Limits } from '../src/contract.js'
import { createLiveSessions, type LiveSessions } from '../src/live-sessions.js'
import { createPickup } from '../src/pickup.js'
import { createQuota } from '../src/quota.js'

declare module 'fastify' {
  interface FastifyInstance {
    /** All that routes see. */
    pickup: {
      contract: Contract
      calls: Calls
      liveSessions: LiveSessions
      limits: Limits
      version: string
      /** Whether each thing that the service stands on answers. Without the store it cannot serve; without the bus it is slower. */
      readiness(): Promise<{ store: boolean; pubsub: boolean }>
    }
  }
}

const version = '0.1.0' // test/house.test.ts compares it with package.json

/** Joins the ports. */
export default fp<{ config: Config }>(
  async (app, { config }) => {
    const { store, sessions: directory, pubsub, log } = app
    const now = () => performance.now()
    const contract = createContract(config.limits)
    const liveSessions = createLiveSessions({ store, directory, pubsub, log, now, leaseMs: config.LEASE_MS })
    const quota = createQuota({ messages: config.QUOTA_MESSAGES, bytes: config.QUOTA_BYTES }, store, now)
    const calls = createCalls(contract, createPickup({ store, liveSessions, quota, limits: config.limits, leaseMs: config.LEASE_MS }))
    app.decorate('pickup', { contract, calls, liveSessions, limits: config.limits, version, readiness })

    async function readiness() {
      const isUp = await store.ping().then(
        () => true,
        () => false,
      )
      return { store: isUp, pubsub: pubsub.isUp() }
    }
  },
  { name: 'pickup', dependencies: ['storage', 'pubsub'] },
)
