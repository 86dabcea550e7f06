import fp from 'fastify-plugin'
import type { Config } from '../src/config.js'

/** How often leases are renewed and what no hint brought is looked for. */
const TICK_MS = 5_000
// Expiry is one short transaction a tick, so that leases are renewed in between however much has expired (0.5 ms for a message of
// 500 KB).
const EXPIRE_BATCH = 500
const SWEEP_EVERY_TICKS = 12

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
        await expire()
        if (ticks++ % SWEEP_EVERY_TICKS === 0) await app.sessions.sweep()
        if (isDown) app.log.info({}, 'database answers again')
        isDown = false
      } catch (err) {
        if (!isDown) app.log.error({ err }, 'housekeeping failed, trying again every 5 s')
        isDown = true
      }
    }

    async function expire(): Promise<void> {
      const expired = await app.store.expire(EXPIRE_BATCH)
      app.metrics.messagesExpired.inc(expired)
      if (expired > 0) app.log.info({ messages: expired }, 'expired messages were deleted')
    }
  },
  { name: 'janitor', dependencies: ['pickup'] },
)
