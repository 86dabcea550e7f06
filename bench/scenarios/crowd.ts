import { setTimeout as sleep } from 'node:timers/promises'
import type { Instance, Place } from '../stand.js'
import { factsOnly, type Group, type Size } from './scenario.js'

/** Many sockets. Each measurement on a service of its own, because memory that was once used is not given back. */

const IDLE_SECONDS = 5
const STORM_TIMEOUT_MS = 60_000
const RECEIVERS = 200

export const crowd: Group = {
  names: ['idle', 'storm'],
  warms: false,
  async open({ generator, ...stand }) {
    const place = await stand.open()

    /** What `sockets` with `sessions` each add to the memory of the service. */
    const idle = async (service: Instance, sockets: number, sessions: number, seconds: number) => {
      await generator.do('openCrowd', { url: service.ws, sockets: 50, sessions: 10 }) // until the code is compiled
      await generator.do('closeCrowd', undefined)
      const before = await service.probe('memory')
      const { ms } = await generator.do('openCrowd', { url: service.ws, sockets, sessions })
      await sleep(500)
      const { cost } = await place.measured([service], () => sleep(seconds * 1_000))
      const after = await service.probe('memory')
      await mustBeLive(place, sockets * sessions)
      await generator.do('closeCrowd', undefined)
      const each = (what: 'rss' | 'heapUsed') => (after[what] - before[what]) / 1024 / (sockets * sessions)
      return factsOnly(sockets * sessions, {
        kibEach: each('rss'),
        heapKibEach: each('heapUsed'),
        peakMiB: cost.peakBytes / 2 ** 20,
        openMs: ms,
        serviceMsPerSecond: cost.service / 1_000 / seconds,
        postgresMsPerSecond: cost.postgres / 1_000 / seconds,
        redisMsPerSecond: cost.redis / 1_000 / seconds,
      })
    }

    return {
      scenarios: [
        {
          // What does a live session cost that gets nothing, with a socket of its own and among others on one socket?
          name: 'idle',
          async run({ crowd, sessions, isSmoke }: Size) {
            const seconds = isSmoke ? 0.2 : IDLE_SECONDS
            let service = await place.start({ probe: true })
            const apart = await idle(service, crowd, 1, seconds)
            if (!isSmoke) {
              await service.end('SIGTERM')
              service = await place.start({ probe: true })
            }
            const together = await idle(service, 1, sessions, seconds)
            await service.end('SIGTERM')
            return { idle: apart, 'idle, one socket': together }
          },
        },
        {
          // The service is restarted: how long until all sockets are back and live?
          name: 'storm',
          async run({ crowd, isSmoke }: Size) {
            let service: Instance = await place.start()
            const settings = { PORT: new URL(service.url).port }
            await generator.do('openCrowd', { url: service.ws, sockets: crowd, sessions: 1, reconnect: true })
            const startedAt = Date.now()
            await service.end('SIGTERM')
            service = await place.start({ settings })
            const readyAt = Date.now()
            const { result, cost } = await place.measured([service], () => generator.do('crowdBack', { timeoutMs: STORM_TIMEOUT_MS }))
            if (result.back !== crowd) throw new Error(`${crowd - result.back} sockets did not come back within ${STORM_TIMEOUT_MS} ms`)
            await mustBeLive(place, crowd)
            const { missing } = await generator.do('crowdReceives', { url: service.ws, count: isSmoke ? 10 : RECEIVERS })
            const sample = factsOnly(crowd, {
              backMs: result.lastLiveAt - startedAt,
              backMsAfterReady: result.lastLiveAt - readyAt,
              tries: result.tries,
              peakMiB: cost.peakBytes / 2 ** 20,
              serviceUsEach: cost.service / crowd,
              postgresUsEach: cost.postgres / crowd,
            })
            sample.faults.lost = missing
            await generator.do('closeCrowd', undefined)
            await place.client.query('TRUNCATE queued_messages')
            await service.end('SIGTERM')
            return { storm: sample }
          },
        },
      ],
      close: place.close,
    }
  },
}

async function mustBeLive({ client }: Place, sessions: number): Promise<void> {
  const { rows } = await client.query<{ live: number }>(
    'SELECT count(*)::int AS live FROM live_sessions s JOIN instances i USING (instance_id) WHERE i.lease_until > now()',
  )
  if (rows[0]!.live !== sessions) throw new Error(`${rows[0]!.live} sessions are live instead of ${sessions}`)
}
