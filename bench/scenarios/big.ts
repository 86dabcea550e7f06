import { mustBeEmpty, sampleOf, type Group, type Samples } from './scenario.js'

/**
 * How much memory does the service need while large messages pass through, 8 at a time, and does it stall meanwhile? They are
 * added, taken and removed, and then added, delivered and removed. A new service each, because the peak is what is asked for.
 */

const KIB_64 = 64 * 1024
const MIB_1 = 1024 * 1024
const SHAPE = { sockets: 2, inFlight: 4, connections: 20 }

export const big: Group = {
  names: ['big'],
  warms: false,
  async open({ generator, ...stand }) {
    const place = await stand.open()
    return {
      scenarios: [
        {
          names: ['big'],
          async run({ bigMessages, isSmoke }) {
            const samples: Samples = {}
            let service = await place.start({ probe: true })
            for (const [name, payloadBytes, messages] of [
              ['64 KiB', KIB_64, bigMessages * 4],
              ['1 MiB', MIB_1, bigMessages],
            ] as const) {
              await service.probe('watch')
              const load = { ...SHAPE, payloadBytes, messages }
              const added = await place.measured([service], () => generator.do('add', { urls: [service.ws], ...load }))
              const drained = await place.measured([service], () =>
                generator.do('drain', { url: service.ws, sockets: 2, inFlight: 1, limit: 10 }),
              )
              await generator.do('openMailboxes', { addUrl: service.ws, liveUrl: service.ws, ...load })
              const lived = await place.measured([service], () => generator.do('day', { inFlight: 4, messages }))
              await generator.do('closeMailboxes', undefined)
              await mustBeEmpty(place, added.result.refused + lived.result.refused)
              const stallMs = await service.probe('stall')
              if (!isSmoke) {
                await service.end('SIGTERM')
                service = await place.start({ probe: true })
              }
              samples[`big ${name} add`] = { ...sampleOf(added.result, added.cost, { stallMs }), faults: drained.result.faults }
              samples[`big ${name} drain`] = sampleOf(drained.result, drained.cost)
              samples[`big ${name} day`] = sampleOf(lived.result, lived.cost)
            }
            await service.end('SIGTERM')
            return samples
          },
        },
      ],
      close: place.close,
    }
  },
}
