import type { Load } from '../traffic.js'
import { IN_FLIGHT, mustBeEmpty, PAYLOAD_BYTES, sampleOf, SOCKETS, type Group, type Samples, type Size } from './scenario.js'

/** One instance, and the ceiling beside it. */

const RATES = [100, 250, 500, 1_000, 2_000, 4_000, 8_000, 16_000]
const RATE_SECONDS = 1
const PAGE = 10

export const one: Group = {
  names: ['ping', 'floor', 'bare', 'add', 'drain', 'rate', 'load', 'day'],
  warms: true,
  rounds: 5, // its goals are narrow, and a full collection of V8, once in four rounds, makes an add of that round a fifth dearer
  async open({ generator, ...stand }) {
    const place = await stand.open()
    const service = await place.start()
    const floor = await place.startFloor()
    const bare = await place.startBare()
    const services = [service]
    const shape = { sockets: SOCKETS, inFlight: IN_FLIGHT, payloadBytes: PAYLOAD_BYTES }
    const fixed = ({ perSecond, seconds, connections }: Pick<Size, 'perSecond' | 'seconds' | 'connections'>) => ({
      ...shape,
      perSecond,
      messages: perSecond * seconds,
      connections,
    })

    const drain = async (refused: number, limit = PAGE) => {
      const { result, cost } = await place.measured(services, () =>
        generator.do('drain', { url: service.ws, sockets: SOCKETS, inFlight: IN_FLIGHT, limit }),
      )
      await mustBeEmpty(place, refused)
      return sampleOf(result, cost)
    }

    /** What was added is drained unmeasured. `look` is taken before. */
    const add = async (load: Load, look?: () => Promise<Record<string, number>>) => {
      const { result, cost } = await place.measured(services, () => generator.do('add', { urls: [service.ws], ...load }))
      const facts = await look?.()
      const { faults } = await drain(result.refused, 100)
      return { ...sampleOf(result, cost, facts), faults }
    }

    /**
     * A table whose file has room for what comes: that of a queue at work, which VACUUM can hardly shorten while messages are added at its end
     * (docs/decisions/0008). And a checkpoint, so that every round writes as many full pages to the log.
     */
    const tableInUse = async () => {
      await place.client.query('VACUUM (TRUNCATE FALSE) queued_messages')
      await place.client.query('CHECKPOINT')
    }

    return {
      scenarios: [
        {
          // What does a frame cost that does nothing?
          names: ['ping'],
          async run({ messages }) {
            const { result, cost } = await place.measured(services, () =>
              generator.do('ping', { url: service.ws, ...shape, messages: messages * 4 }),
            )
            return { ping: sampleOf(result, cost) }
          },
        },
        {
          // How fast are durable adds, against a handler that only answers them, and one that only stores them; what does it cost to take
          // and remove them, and what to add to an empty file that grows, or to connections of which nothing is known yet?
          names: ['floor', 'bare', 'add', 'drain'],
          async run({ messages, connections }) {
            const load = { ...shape, messages, connections }
            await place.client.query('TRUNCATE queued_messages')
            const newFile = await add(load, async () => {
              const { rows } = await place.client.query<{ bytes: string }>(`SELECT pg_total_relation_size('queued_messages') AS bytes`)
              return { diskBytes: Number(rows[0]!.bytes) / messages }
            })
            await tableInUse()
            const atFloor = await place.measured([floor], () =>
              generator.do('add', { urls: [floor.ws], ...load, messages: messages * 2, onlyAnswers: true }),
            )
            const atBare = await place.measured([bare], () => generator.do('add', { urls: [bare.ws], ...load, onlyAnswers: true }))
            await place.client.query('DELETE FROM queued_messages')
            await tableInUse()
            const added = await place.measured(services, () => generator.do('add', { urls: [service.ws], ...load }))
            const drained = await drain(added.result.refused)
            return {
              floor: sampleOf(atFloor.result, atFloor.cost),
              bare: sampleOf(atBare.result, atBare.cost),
              add: { ...sampleOf(added.result, added.cost), faults: drained.faults },
              drain: drained,
              'add, new file': newFile,
              'add, one each': await add({ ...load, messages: messages / 4, connections: messages / 4 }),
            }
          },
        },
        {
          // How long does an add take at a load that is no load, against the commit of one row on this disk?
          names: ['rate'],
          async run({ perSecond, seconds, connections }) {
            await tableInUse()
            const probe = { databaseUrl: place.databaseUrl, perSecond, messages: (perSecond * seconds) / 2, payloadBytes: PAYLOAD_BYTES }
            const commits = [await generator.do('commits', probe)]
            const rate = await add(fixed({ perSecond, seconds, connections }))
            commits.push(await generator.do('commits', probe))
            const mean = (share: 'p50' | 'p99') => (commits[0]![share] + commits[1]![share]) / 2
            rate.facts.commitP50Ms = mean('p50')
            rate.facts.commitP99Ms = mean('p99')
            return { rate }
          },
        },
        {
          // How does the latency of an add grow with the load?
          names: ['load'],
          async run({ isSmoke, connections }) {
            const samples: Samples = {}
            for (const perSecond of isSmoke ? RATES.slice(0, 1) : RATES) {
              samples[`load ${perSecond}`] = await add(fixed({ perSecond, seconds: isSmoke ? 0.2 : RATE_SECONDS, connections }))
            }
            return samples
          },
        },
        {
          // What does the whole way cost: add, messagesReceived, removeMessages?
          names: ['day'],
          async run(size) {
            const mailboxes = {
              addUrl: service.ws,
              liveUrl: service.ws,
              sockets: SOCKETS,
              connections: size.connections,
              payloadBytes: PAYLOAD_BYTES,
            }
            await tableInUse()
            await generator.do('openMailboxes', mailboxes)
            const full = await place.measured(services, () => generator.do('day', { inFlight: IN_FLIGHT, messages: size.messages }))
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
