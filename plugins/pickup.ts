import { performance } from 'node:perf_hooks' // docs/decisions/0008, “The globals of Node”
import fp from 'fastify-plugin'
import { createAdministration } from '../src/administration.js'
import { createAdministrator } from '../src/administrator.js'
import { CALL_DEADLINE_MS, createCalls, type Calls } from '../src/calls.js'
import type { Config } from '../src/config.js'
import { createContract, type Contract, type Limits } from '../src/contract.js'
import { createLiveSessions, type LiveSessions } from '../src/live-sessions.js'
import { createPickup } from '../src/pickup.js'
import { createPush, type Push } from '../src/push.js'
import { createQuota } from '../src/quota.js'
import { createRateLimit } from '../src/rate-limit.js'
import { createSaturation } from '../src/saturation.js'

declare module 'fastify' {
  interface FastifyInstance {
    /** All that routes see. */
    pickup: {
      contract: Contract
      calls: Calls
      /** The operator's; over REST only. */
      administration: Calls
      liveSessions: LiveSessions
      /** Absent when pushes are off. */
      push: Push | undefined
      limits: Limits
      /** Calls of one socket that run at the same time. */
      maxCallsInFlight: number
      version: string
      /** Whether each thing that the service stands on answers. Without the store it cannot serve; without the bus it is slower. */
      readiness(): Promise<{ store: boolean; pubsub: boolean }>
    }
  }
}

/** Two statements of 5 s do not fit: then the caller is told "timeout". Shorter than a shutdown waits for requests. */
const ADMINISTRATION_DEADLINE_MS = 6_000
/** As many as there are connections for it, see plugins/storage/index.ts. */
const ADMINISTRATION_CALLS = 2

const version = '0.1.0' // test/house.test.ts compares it with package.json

/** Joins the ports. */
export default fp<{ config: Config }>(
  async (app, { config }) => {
    const { store, sessions: directory, pubsub, pushOutbox: outbox, pushSender: sender, log } = app
    const now = () => performance.now()
    const contract = createContract(config.limits)
    const liveSessions: LiveSessions = createLiveSessions({
      ...{ store, directory, pubsub, log, now, leaseMs: config.LEASE_MS },
      onOverdue: (connectionId) => push?.remind(connectionId),
    })
    const push: Push | undefined =
      sender &&
      createPush({
        ...{ outbox, sender, log, now },
        ownerOf: liveSessions.ownerOf,
        retryMs: config.PUSH_RETRY_MS,
        giveUpMs: config.PUSH_GIVE_UP_SECONDS * 1_000,
      })
    const quota = createQuota({ messages: config.QUOTA_MESSAGES, bytes: config.QUOTA_BYTES }, store, now)
    const pickup = createPickup({ store, outbox, push, liveSessions, quota, limits: config.limits, leaseMs: config.LEASE_MS })
    const calls = createCalls(contract, pickup, {
      deadlineMs: CALL_DEADLINE_MS,
      maxInFlight: config.MAX_CALLS_PER_INSTANCE,
      rateLimit: createRateLimit({ perSecond: config.RATE_LIMIT_CALLS_PER_SECOND, now }),
      saturation: createSaturation(now),
      observe: app.metrics.observeCall,
    })
    // Not observed: an alert on slow calls would take a list for one.
    const administration = createCalls(
      createAdministration(config.limits),
      createAdministrator({ administration: app.administration, outbox, liveSessions, log, now }),
      { deadlineMs: ADMINISTRATION_DEADLINE_MS, maxInFlight: ADMINISTRATION_CALLS, rateLimit: createRateLimit({ perSecond: 0, now }) },
    )
    const { limits, MAX_CALLS_IN_FLIGHT: maxCallsInFlight } = config
    app.decorate('pickup', { contract, calls, administration, liveSessions, push, limits, maxCallsInFlight, version, readiness })

    async function readiness() {
      const isUp = await store.ping().then(
        () => true,
        () => false,
      )
      return { store: isUp, pubsub: pubsub.isUp() }
    }
  },
  { name: 'pickup', dependencies: ['metrics', 'storage', 'pubsub', 'push'] },
)
