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

    const startWarm = async () => {
      const service = await place.start({ probe: true })
      await generator.do('openCrowd', { url: service.ws, sockets: 50, sessions: 10 }) // until the code is compiled
      await generator.do('closeCrowd', undefined)
      return service
    }

    /** What `sockets` with `sessions` each add to the memory of the service. They stay open. */
    const idle = async (service: Instance, sockets: number, sessions: number, seconds: number) => {
      const before = await service.probe('memory')
      const { ms } = await generator.do('openCrowd', { url: service.ws, sockets, sessions, reconnect: sessions === 1 })
      await sleep(500)
      const { cost } = await place.measured([service], () => sleep(seconds * 1_000))
      const after = await service.probe('memory')
      await mustBeLive(place, sockets * sessions)
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

    /** From the signal that ends the service until every socket of the crowd is live at the new one. */
    const storm = async (old: Instance, sockets: number, receivers: number) => {
      const startedAt = Date.now()
      // What it ends with is told, and not judged here.
      await old.end('SIGTERM')
      const service = await place.start({ settings: { PORT: new URL(old.url).port } })
      const readyAt = Date.now()
      const { result, cost } = await place.measured([service], () => generator.do('crowdBack', { timeoutMs: STORM_TIMEOUT_MS }))
      const areBack = result.back === sockets
      if (areBack) await mustBeLive(place, sockets)
      const { missing } = areBack ? await generator.do('crowdReceives', { url: service.ws, count: receivers }) : { missing: 0 }
      await generator.do('closeCrowd', undefined)
      await place.client.query('TRUNCATE queued_messages')
      await service.end('SIGTERM')
      const sample = factsOnly(sockets, {
        backMs: areBack ? result.lastLiveAt - startedAt : STORM_TIMEOUT_MS,
        downMs: readyAt - startedAt,
        notBack: sockets - result.back,
        tries: result.tries,
        peakMiB: cost.peakBytes / 2 ** 20,
        serviceUsEach: cost.service / sockets,
        postgresUsEach: cost.postgres / sockets,
      })
      sample.faults.lost = missing
      return sample
    }

    return {
      scenarios: [
        {
          // What does a live session cost that gets nothing, with a socket of its own and among others on one socket; and when
          // the service is restarted, how long until all sockets are back and live?
          names: ['idle', 'storm'],
          async run({ crowd, sessions, isSmoke }: Size) {
            const seconds = isSmoke ? 0.2 : IDLE_SECONDS
            let service = await startWarm()
            const together = await idle(service, 1, sessions, seconds)
            await generator.do('closeCrowd', undefined)
            if (!isSmoke) {
              await service.end('SIGTERM')
              service = await startWarm()
            }
            const apart = await idle(service, crowd, 1, seconds)
            const back = await storm(service, crowd, isSmoke ? 10 : RECEIVERS)
            return { idle: apart, 'idle, one socket': together, storm: back }
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
