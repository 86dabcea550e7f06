import { startCluster } from '../../test/helpers/redis.js'
import { mustBeEmpty, PAYLOAD_BYTES, sampleOf, SOCKETS, type Group, type Samples } from './scenario.js'

/**
 * Two instances for each kind of bus: what does a message to the other instance cost, and is it as soon there as one to the same
 * instance? Only when asked for by name: docs/scale.md chooses a bus by it.
 */

const PER_SECOND = 200

export const buses: Group = {
  names: ['buses'],
  warms: true,
  isExtra: true,
  async open({ generator, ...stand }) {
    const place = await stand.open()
    const cluster = await startCluster()
    const settings = { postgres: { REDIS_URL: undefined }, redis: {}, cluster: { REDIS_URL: undefined, REDIS_NODES: cluster.list } }
    return {
      scenarios: [
        {
          names: ['buses'],
          async run({ messages, connections, seconds, isSmoke }) {
            const samples: Samples = {}
            for (const [name, setting] of Object.entries(settings)) {
              const options = { settings: setting }
              const [a, b] = await Promise.all([place.start(options), place.start(options)])
              for (const [where, { ws: liveUrl }] of [
                ['same', a],
                ['other', b],
              ] as const) {
                await generator.do('openMailboxes', { addUrl: a.ws, liveUrl, sockets: SOCKETS, payloadBytes: PAYLOAD_BYTES, connections })
                const day = (load: { inFlight: number; messages: number; perSecond?: number }) =>
                  place.measured([a, b], () => generator.do('day', load), cluster.nodes)
                const full = await day({ inFlight: 32, messages: messages / 4 })
                const calm = await day({ inFlight: 0, perSecond: PER_SECOND, messages: PER_SECOND * seconds * (isSmoke ? 1 : 2) })
                await generator.do('closeMailboxes', undefined)
                await mustBeEmpty(place, full.result.refused + calm.result.refused)
                samples[`${name}, ${where}`] = sampleOf(full.result, full.cost)
                samples[`${name}, ${where}, ${PER_SECOND}/s`] = sampleOf(calm.result, calm.cost)
              }
              await Promise.all([a.end('SIGTERM'), b.end('SIGTERM')])
            }
            return samples
          },
        },
      ],
      async close() {
        await place.close()
        await cluster.stop()
      },
    }
  },
}
