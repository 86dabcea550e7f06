import { IN_FLIGHT, mustBeEmpty, PAYLOAD_BYTES, sampleOf, SOCKETS, type Group, type Samples, type Size } from './scenario.js'

/** One instance, and the ceiling beside it. */

const RATES = [100, 250, 500, 1_000, 2_000, 4_000, 8_000]
const RATE_SECONDS = 2
const PAGE = 10

export const one: Group = {
  names: ['ping', 'add', 'rate', 'load', 'day'],
  warms: true,
  async open({ generator, ...stand }) {
    const place = await stand.open()
    const service = await place.start()
    const floor = await place.startFloor()
    const services = [service]
    const shape = { sockets: SOCKETS, inFlight: IN_FLIGHT, payloadBytes: PAYLOAD_BYTES }
    const fixed = ({ perSecond, seconds, connections }: Pick<Size, 'perSecond' | 'seconds' | 'connections'>) => ({
      ...shape,
      perSecond,
      messages: perSecond * seconds,
      connections,
    })

    const drain = async (refused: number) => {
      const { result, cost } = await place.measured(services, () =>
        generator.do('drain', { url: service.ws, sockets: SOCKETS, inFlight: IN_FLIGHT, limit: PAGE }),
      )
      await mustBeEmpty(place, refused)
      return sampleOf(result, cost)
    }

    /** The latency of adds at this rate; what they left is drained unmeasured. */
    const addAt = async (perSecond: number, seconds: number, connections: number) => {
      const { result, cost } = await place.measured(services, () =>
        generator.do('add', { urls: [service.ws], ...fixed({ perSecond, seconds, connections }) }),
      )
      const { faults } = await drain(result.refused)
      return { ...sampleOf(result, cost), faults }
    }

    return {
      scenarios: [
        {
          // What does a frame cost that does nothing?
          name: 'ping',
          async run({ messages }) {
            const { result, cost } = await place.measured(services, () =>
              generator.do('ping', { url: service.ws, ...shape, messages: messages * 4 }),
            )
            return { ping: sampleOf(result, cost) }
          },
        },
        {
          // How fast are durable adds, against a handler that only answers them; and what does it cost to take and remove them?
          name: 'add',
          async run({ messages, connections }) {
            await place.client.query('CHECKPOINT') // so that every round writes as many full pages to the log
            const load = { ...shape, messages, connections }
            const atFloor = await place.measured([floor], () =>
              generator.do('add', { urls: [floor.ws], ...load, messages: messages * 2, onlyAnswers: true }),
            )
            const added = await place.measured(services, () => generator.do('add', { urls: [service.ws], ...load }))
            const drained = await drain(added.result.refused)
            return {
              floor: sampleOf(atFloor.result, atFloor.cost),
              add: { ...sampleOf(added.result, added.cost), faults: drained.faults },
              drain: drained,
            }
          },
        },
        {
          // How long does an add take at a load that is no load, against the commit of one row on this disk?
          name: 'rate',
          async run({ perSecond, seconds, connections }) {
            const probe = { databaseUrl: place.databaseUrl, perSecond, messages: (perSecond * seconds) / 2, payloadBytes: PAYLOAD_BYTES }
            const commits = [await generator.do('commits', probe)]
            const rate = await addAt(perSecond, seconds, connections)
            commits.push(await generator.do('commits', probe))
            const mean = (share: 'p50' | 'p99') => (commits[0]![share] + commits[1]![share]) / 2
            rate.facts.commitP50Ms = mean('p50')
            rate.facts.commitP99Ms = mean('p99')
            return { rate }
          },
        },
        {
          // How does the latency of an add grow with the load?
          name: 'load',
          async run({ isSmoke, connections }) {
            const samples: Samples = {}
            for (const perSecond of isSmoke ? RATES.slice(0, 2) : RATES) {
              samples[`load ${perSecond}`] = await addAt(perSecond, isSmoke ? 0.2 : RATE_SECONDS, connections)
            }
            return samples
          },
        },
        {
          // What does the whole way cost: add, messagesReceived, removeMessages?
          name: 'day',
          async run(size) {
            const mailboxes = {
              addUrl: service.ws,
              liveUrl: service.ws,
              sockets: SOCKETS,
              connections: size.connections,
              payloadBytes: PAYLOAD_BYTES,
            }
            await generator.do('openMailboxes', mailboxes)
            const full = await place.measured(services, () => generator.do('day', { inFlight: IN_FLIGHT, messages: size.messages / 2 }))
            const calm = await place.measured(services, () => generator.do('day', fixed(size)))
            await generator.do('closeMailboxes', undefined)
            await mustBeEmpty(place, full.result.refused + calm.result.refused)
            return { day: sampleOf(full.result, full.cost), 'day rate': sampleOf(calm.result, calm.cost) }
          },
        },
      ],
      close: place.close,
    }
  },
}
