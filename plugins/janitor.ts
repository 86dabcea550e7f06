import fp from 'fastify-plugin'
import type { Config } from '../src/config.js'

/** How often leases are renewed and what no hint brought is looked for. */
const TICK_MS = 5_000
/** How soon after a failure, its own or that of a delivery: who waits then waits no longer than this once the database answers again. */
const RETRY_MS = 1_000
// Expiry is one short transaction a tick, so that leases are renewed in between however much has expired (0.5 ms for a message of
// 500 KB).
const EXPIRE_BATCH = 500
// As many as are removed in a tick at 4,000 a second.
const FORGET_BATCH = 20_000
/**
 * How often a push is looked for that fell due by itself or was owed by another instance: a second more or less does not matter to a
 * phone, and what is owed here is looked for at once.
 */
const PUSH_POLL_MS = 1_000
/** A sending takes at most its time-out; a claim that is left runs out, and another instance sends. */
const PUSH_STOP_MS = 3_000

/** What has to happen by itself: leases, the reconciler, expiry, pushes. */
export default fp<{ config: Config }>(
  async (app) => {
    const { push, liveSessions } = app.pickup
    let isDown = false
    let running: Promise<void> | undefined
    let turns = 0
    let stopped = false

    const timer = setInterval(() => {
      const isDue = ++turns % (TICK_MS / RETRY_MS) === 0 || isDown || liveSessions.isBehind()
      if (isDue) running ??= tick().finally(() => (running = undefined))
    }, RETRY_MS)
    const poll = push && setInterval(push.look, PUSH_POLL_MS)
    app.addHook('preClose', async () => {
      stopped = true
      clearInterval(timer)
      clearInterval(poll)
      await Promise.all([running, push?.stop(PUSH_STOP_MS)])
    })

    async function tick(): Promise<void> {
      if (stopped) return
      try {
        await app.sessions.renew()
        await liveSessions.tick()
        await expire()
        await app.store.sweep(FORGET_BATCH)
        await app.sessions.sweep()
        await app.pushOutbox.sweep()
        if (isDown) app.log.info({}, 'database answers again')
        isDown = false
      } catch (err) {
        if (!isDown) app.log.error({ err }, 'housekeeping failed, trying again every second')
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
