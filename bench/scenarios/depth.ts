import { setTimeout as sleep } from 'node:timers/promises'
import type pg from 'pg'
import type { Instance, Place } from '../stand.js'
import { factsOnly, type Group, type Samples, type Size } from './scenario.js'
import { median } from '../measure.js'

/**
 * Does an operation cost the same however many messages wait, in other queues and in this one? One socket, one call at a time.
 * Every measurement is made in turn with its like: the full table with an empty one (another database, another service), the
 * deep queue with one of 10; so only their ratio counts. Answers are compared with the table.
 *
 * With --fresh the service makes its plans on the empty table and statistics are never gathered: a new installation that
 * fills up at once.
 */

export const CALLS = { take: 60, count: 20, add: 40 }
type Operation = keyof typeof CALLS
const OPERATIONS = Object.keys(CALLS) as Operation[]
const ROUNDS = 5
const PAYLOAD_BYTES = 1_500 // of the queues that are looked at; the others' are small, because filling is not what is measured
const DID = 'did:key:z6MkhaXgBZDvotDkL5257faiztiGiC2QtKLGpbnnEGta2doK'
const SMALL = 10
/** One in so many messages of the table belongs to the queue of this divisor. */
const DIVISORS = [100_000, 10_000, 1_000, 100, 10]

interface Side {
  place: Place
  service: Instance
}

interface Cost {
  us: number
  cpuUs: number
}

export const depth: Group = {
  names: ['depth'],
  warms: false,
  async open({ generator, ...stand }) {
    const isFresh = process.argv.includes('--fresh')
    const open = async (): Promise<Side> => {
      const place = await stand.open()
      const service = await place.start({ settings: { QUOTA_MESSAGES: '2000000' } })
      if (isFresh) {
        for (const table of ['queued_messages', 'live_sessions', 'instances'])
          await place.client.query(`ALTER TABLE ${table} SET (autovacuum_enabled = off)`)
      }
      return { place, service }
    }
    const [empty, full] = await Promise.all([open(), open()])

    /** Calls of one kind, of one queue. */
    const cost = async (
      { place, service }: Side,
      operation: Operation,
      connectionId: string,
      messages: number,
      isSmoke: boolean,
    ): Promise<Cost> => {
      const calls = isSmoke ? 4 : CALLS[operation]
      const [method, params] = {
        take: ['takeFromQueue', { connectionId, limit: 10 }],
        add: ['addMessage', { connectionId, recipientDids: [DID], payload: { ciphertext: 'x'.repeat(PAYLOAD_BYTES) } }],
        count: ['getAvailableMessageCount', { connectionId }],
      }[operation] as [string, object]
      const { result, cost } = await place.measured([service], () => generator.do('inTurn', { url: service.ws, method, params, calls }))
      if (operation === 'take' && JSON.stringify(result.answer) !== (await readHead(place.client, connectionId)))
        throw new Error(`wrong answer to a take of ${connectionId}`)
      if (operation === 'count' && result.answer !== messages)
        throw new Error(`${connectionId} has ${messages} messages, not ${String(result.answer)}`)
      return { us: result.us, cpuUs: (cost.service + cost.postgres) / calls }
    }

    /** Medians of the rounds, in which the two take turns at being first. */
    const compare = async (isSmoke: boolean, one: [Side, string, number], other: [Side, string, number], messages: number) => {
      const facts: Record<string, number> = {}
      for (const operation of OPERATIONS) {
        const costs: [Cost[], Cost[]] = [[], []]
        for (let round = isSmoke ? 0 : -1; round < (isSmoke ? 1 : ROUNDS); round++) {
          for (const which of round % 2 === 0 ? ([0, 1] as const) : ([1, 0] as const)) {
            const [side, connectionId, depth] = [one, other][which]!
            const sample = await cost(side, operation, connectionId, depth, isSmoke)
            if (round >= 0) costs[which].push(sample)
          }
        }
        const [base, loaded] = costs.map((list) => ({
          us: median(list.map(({ us }) => us)),
          cpuUs: median(list.map(({ cpuUs }) => cpuUs)),
        }))
        facts[`${operation}Us`] = loaded!.us
        facts[`${operation}BaseUs`] = base!.us
        facts[`${operation}CpuUs`] = loaded!.cpuUs
        facts[`${operation}Ratio`] = loaded!.us / base!.us
        facts[`${operation}CpuRatio`] = loaded!.cpuUs / base!.cpuUs
      }
      return factsOnly(messages, facts)
    }

    return {
      scenarios: [
        {
          names: ['depth'],
          once: true,
          async run({ table, isSmoke }: Size) {
            const samples: Samples = {}
            const queues = DIVISORS.filter((divisor) => table / divisor >= SMALL)
            // As often as Postgres needs to decide for the plan that it keeps.
            if (isFresh) for (let i = 0; i < 20; i++) await makePlans(full)
            let filled = 0
            for (const messages of [0, table / 1_000, table / 100, table / 10, table].filter((count) => count === 0 || count >= 100)) {
              let filling = true
              const done = fill(full.place.client, filled, messages, queues).finally(() => (filling = false))
              // A connection that idles is closed after 10 s, and its plans with it.
              for (; isFresh && filling; await sleep(500)) await makePlans(full)
              await done
              filled = messages
              const name = `aside ${messages}`
              for (const { place } of [empty, full]) await fillSmall(place.client, name)
              if (!isFresh) await full.place.client.query('VACUUM ANALYZE queued_messages')
              await full.place.client.query('CHECKPOINT')
              samples[`depth elsewhere ${messages}`] = await compare(isSmoke, [empty, name, SMALL], [full, name, SMALL], messages)
              await empty.place.client.query('TRUNCATE queued_messages')
            }
            for (const divisor of queues.slice(1)) {
              const messages = table / divisor
              const small = `beside ${divisor}`
              await fillSmall(full.place.client, small)
              samples[`depth here ${messages}`] = await compare(
                isSmoke,
                [full, small, SMALL],
                [full, `one in ${divisor}`, messages],
                messages,
              )
            }
            return samples
          },
        },
      ],
      async close() {
        await Promise.all([empty.place.close(), full.place.close()])
      },
    }

    async function makePlans({ service }: Side): Promise<void> {
      for (const method of ['takeFromQueue', 'getAvailableMessageCount'])
        await generator.do('inTurn', { url: service.ws, method, params: { connectionId: 'nobody' }, calls: 1 })
    }
  },
}

const filler = 'x'.repeat(PAYLOAD_BYTES - 60)
const envelopeOf = (n: string) => `'{"protected":"e30","ciphertext":"' || ${n} || ' ${filler}"}'`

/** The queues that are looked at lie between those of 10,000 others, as if all had come in turn. */
async function fill(client: pg.Client, from: number, to: number, queues: number[]): Promise<void> {
  const cases = queues.map((divisor) => `WHEN n % ${divisor} = ${divisor / 10 - 1} THEN 'one in ${divisor}'`)
  await client.query(`
    INSERT INTO queued_messages (connection_id, seq, tag, recipient_dids, payload, payload_bytes, accepted_at)
    SELECT connection_id, n, 35, '{${DID}}', payload, length(payload), now() - interval '1 hour' + n * interval '1 ms'
    FROM generate_series(${from + 1}, ${to}) n,
      LATERAL (SELECT CASE ${cases.join(' ')} ELSE 'connection ' || n % 10007 END AS connection_id) c,
      LATERAL (SELECT CASE WHEN connection_id LIKE 'one in %' THEN ${envelopeOf('n')} ELSE '{"ciphertext":"small"}' END AS payload) p`)
  // The small queues come later; theirs are the highest.
  await client.query(`SELECT setval('queued_messages_seq_seq', greatest(nextval('queued_messages_seq_seq'), 10000000))`)
}

async function fillSmall(client: pg.Client, connectionId: string): Promise<void> {
  await client.query(
    `INSERT INTO queued_messages (connection_id, tag, recipient_dids, payload, payload_bytes)
    SELECT $1, 35, '{${DID}}', payload, length(payload) FROM generate_series(1, ${SMALL}) n, LATERAL (SELECT ${envelopeOf('n')} AS payload) p`,
    [connectionId],
  )
}

/** What a take of 10 must answer. */
async function readHead(client: pg.Client, connectionId: string): Promise<string> {
  const { rows } = await client.query<{ seq: string; tag: number; payload: string; at: Date }>(
    'SELECT seq, tag, payload, coalesce(received_at, accepted_at) AS at FROM queued_messages WHERE connection_id = $1 ORDER BY seq LIMIT 10',
    [connectionId],
  )
  return JSON.stringify(
    rows.map(({ seq, tag, payload, at }) => ({
      id: `${seq}-${tag.toString(36).padStart(6, '0')}`,
      receivedAt: at.toISOString(),
      encryptedMessage: JSON.parse(payload) as unknown,
    })),
  )
}
