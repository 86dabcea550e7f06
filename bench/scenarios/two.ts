import { IN_FLIGHT, mustBeEmpty, PAYLOAD_BYTES, sampleOf, SOCKETS, type Group } from './scenario.js'

/** Two instances, one Postgres, one Redis. */
export const two: Group = {
  names: ['cross', 'two'],
  warms: true,
  async open({ generator, ...stand }) {
    const place = await stand.open()
    const [a, b] = await Promise.all([place.start(), place.start()])
    const shape = { sockets: SOCKETS, inFlight: IN_FLIGHT, payloadBytes: PAYLOAD_BYTES }
    return {
      scenarios: [
        {
          // What does it cost, and how long does it take, when the wallet is live at the other instance? (Add at A, live at B.)
          names: ['cross'],
          async run({ messages, connections, perSecond, seconds }) {
            await generator.do('openMailboxes', { addUrl: a.ws, liveUrl: b.ws, ...shape, connections })
            const full = await place.measured([a, b], () => generator.do('day', { inFlight: IN_FLIGHT, messages: messages / 4 }))
            const calm = await place.measured([a, b], () => generator.do('day', { inFlight: 0, perSecond, messages: perSecond * seconds }))
            await generator.do('closeMailboxes', undefined)
            await mustBeEmpty(place, full.result.refused + calm.result.refused)
            return { cross: sampleOf(full.result, full.cost), 'cross rate': sampleOf(calm.result, calm.cost) }
          },
        },
        {
          // How much more do two instances add than one, with the same load?
          names: ['two'],
          async run({ messages, connections }) {
            const addTo = async (services: (typeof a)[]) => {
              const urls = services.map(({ ws }) => ws)
              const { result, cost } = await place.measured(services, () => generator.do('add', { urls, ...shape, messages, connections }))
              const { faults } = await generator.do('drain', { url: b.ws, sockets: SOCKETS, inFlight: IN_FLIGHT, limit: 100 })
              await mustBeEmpty(place, result.refused)
              return { ...sampleOf(result, cost), faults }
            }
            const alone = await addTo([a])
            const both = await addTo([a, b])
            both.facts.gain = both.perSecond! / alone.perSecond!
            return { 'two: one': alone, two: both }
          },
        },
      ],
      close: place.close,
    }
  },
}
