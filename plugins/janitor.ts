import fp from 'fastify-plugin'
import type { Config } from '../src/config.js'

/** How often leases are renewed and what no hint brought is looked for. */
const TICK_MS = 5_000
// A batch of expired messages is one short transaction; more of them wait for the next tick of this many.
const EXPIRE_BATCH = 1_000
const EXPIRE_EVERY_TICKS = 12

/** What has to happen by itself: leases, the reconciler, expiry. */
export default fp<{ config: Config }>(
  async (app) => {
    let ticks = 0
    let isDown = false
    let running: Promise<void> = Promise.resolve()
    let stopped = false

    const timer = setInterval(() => {
      running = running.then(tick)
    }, TICK_MS)
    app.addHook('preClose', async () => {
      stopped = true
      clearInterval(timer)
      await running
    })

    async function tick(): Promise<void> {
      if (stopped) return
      try {
        await app.sessions.renew()
        await app.pickup.liveSessions.tick()
        if (ticks++ % EXPIRE_EVERY_TICKS === 0) {
          await expire()
          await app.sessions.sweep()
        }
        if (isDown) app.log.info({}, 'database answers again')
        isDown = false
      } catch (err) {
        if (!isDown) app.log.error({ err }, 'housekeeping failed, trying again every 5 s')
        isDown = true
      }
    }

    async function expire(): Promise<void> {
      let expired = 0
      for (let batch = EXPIRE_BATCH; batch === EXPIRE_BATCH && !stopped; expired += batch) batch = await app.store.expire(EXPIRE_BATCH)
      if (expired > 0) app.log.info({ messages: expired }, 'expired messages were deleted')
    }
  },
  { name: 'janitor', dependencies: ['pickup'] },
)
