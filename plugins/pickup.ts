import fp from 'fastify-plugin'
import { createCalls, type Calls } from '../src/calls.js'
import type { Config } from '../src/config.js'
import { createContract, type Contract, type Limits } from '../src/contract.js'
import { createLiveSessions, type LiveSessions } from '../src/live-sessions.js'
import { createPickup } from '../src/pickup.js'
import { createQuota } from '../src/quota.js'
import { createRateLimit } from '../src/rate-limit.js'

declare module 'fastify' {
  interface FastifyInstance {
    /** All that routes see. */
    pickup: {
      contract: Contract
      calls: Calls
      liveSessions: LiveSessions
      limits: Limits
      /** Calls of one socket that run at the same time. */
      maxCallsInFlight: number
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
    const pickup = createPickup({ store, liveSessions, quota, limits: config.limits, leaseMs: config.LEASE_MS })
    const calls = createCalls(contract, pickup, {
      maxInFlight: config.MAX_CALLS_PER_INSTANCE,
      rateLimit: createRateLimit({ perSecond: config.RATE_LIMIT_CALLS_PER_SECOND, now }),
      observe: app.metrics.observeCall,
    })
    const { limits, MAX_CALLS_IN_FLIGHT: maxCallsInFlight } = config
    app.decorate('pickup', { contract, calls, liveSessions, limits, maxCallsInFlight, version, readiness })

    async function readiness() {
      const isUp = await store.ping().then(
        () => true,
        () => false,
      )
      return { store: isUp, pubsub: pubsub.isUp() }
    }
  },
  { name: 'pickup', dependencies: ['metrics', 'storage', 'pubsub'] },
)
