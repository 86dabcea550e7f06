import { randomUUID } from 'node:crypto'
import fc from 'fast-check'
import t from 'tap'
import { migrateDatabase } from '../plugins/storage/migrate.js'
import { createPostgresSessions, type PostgresSessions } from '../plugins/storage/postgres-sessions.js'
import { createPostgresStore } from '../plugins/storage/postgres-store.js'
import { createQuery } from '../plugins/storage/query.js'
import type { NewMessage } from '../src/ports.js'
import { jsonBytes } from './helpers/json.js'
import { createQueueModel, type QueueModel } from './helpers/queue-model.js'
import { silent } from './helpers/postgres.js'
import { openPool, testDatabase } from './helpers/service.js'
import { byPromise, type StoreByPromise } from './helpers/store.js'

/*
 * Random calls to two instances of the store on one Postgres, compared one by one with a queue in memory. A failure prints its seed and
 * the fewest calls that show it; SEED=… repeats a run. FAULTS=full runs for two minutes.
 */

const isFull = process.env.FAULTS === 'full'
const seed = Number(process.env.SEED ?? Date.now() % 2 ** 31)
const LEASE_MS = 600_000 // longer than all of this takes: it runs out only when the model says so

const connectionString = await testDatabase(t)
await migrateDatabase({ connectionString }, { apply: true, log: silent })
const pool = openPool(t, { connectionString, max: 8 })
const query = createQuery(pool)
type Pair<T> = [T, T]
const directories = [0, 1].map(() => createPostgresSessions({ pool, query })) as Pair<PostgresSessions>
const stores = directories.map(({ instanceId }) =>
  byPromise(createPostgresStore({ query, instanceId, messageTtlSeconds: 0, pushes: false, tallyWorthRows: 0 })),
) as Pair<StoreByPromise>

const instance = fc.nat({ max: 1 })
const queue = fc.constantFrom('a', 'b')
const did = fc.constantFrom('did:x', 'did:y', 'did:z')
const limit = fc.integer({ min: 1, max: 6 })
const limitBytes = fc.constantFrom(1, 50, 120, 10_000)
const maybe = <T>(arbitrary: fc.Arbitrary<T>) => fc.option(arbitrary, { nil: undefined })
const sessionId = fc.constantFrom('one', 'two')
/** Which of the epochs that the connection had: 0 is the newest. */
const age = fc.constantFrom(0, 0, 0, 0, 1, 2)
const message = fc.record({
  dids: fc.uniqueArray(did, { minLength: 1 }),
  bytes: fc.constantFrom(1, 40, 60, 200),
  key: maybe(fc.constantFrom('k1', 'k2')),
})

/** What comes at the same time under one key is the same: only then its order is nobody's business. */
function sameUnderOneKey<M extends { key: string | undefined }>(messages: M[]): M[] {
  return messages.map((message) => messages.find(({ key }) => key !== undefined && key === message.key) ?? message)
}

/** One call. `on` is the instance that gets it. */
const step = fc.oneof(
  {
    weight: 6,
    arbitrary: fc.record({
      call: fc.constant('add'),
      on: instance,
      queue,
      messages: fc.array(message, { minLength: 1, maxLength: 4 }).map(sameUnderOneKey),
      claimForAge: maybe(age),
    }),
  },
  {
    weight: 4,
    arbitrary: fc.record({ call: fc.constant('take'), on: instance, queue, did: maybe(did), limit, limitBytes, remove: fc.boolean() }),
  },
  { weight: 6, arbitrary: fc.record({ call: fc.constant('claim'), on: instance, queue, age, limit, limitBytes, alone: fc.boolean() }) },
  { weight: 3, arbitrary: fc.record({ call: fc.constant('open'), on: instance, queue, sessionId, hasSocket: fc.boolean() }) },
  { weight: 1, arbitrary: fc.record({ call: fc.constant('close'), on: instance, queue, age: maybe(age), sessionId: maybe(sessionId) }) },
  {
    weight: 2,
    arbitrary: fc.record({ call: fc.constant('remove'), on: instance, queue, picks: fc.array(fc.nat({ max: 40 }), { maxLength: 5 }) }),
  },
  { weight: 1, arbitrary: fc.record({ call: fc.constant('removeAll'), on: instance, queue, did }) },
  { weight: 3, arbitrary: fc.record({ call: fc.constant('hourPasses') }) },
)
type Step = typeof step extends fc.Arbitrary<infer T> ? T : never

/** Makes the calls and compares each answer. @throws Error at the first that differs */
async function play(steps: Step[], pair: Pair<StoreByPromise>): Promise<void> {
  await Promise.all(directories.map((directory) => directory.renew()))
  const run = randomUUID()
  const models: Record<string, QueueModel> = { a: createQueueModel(), b: createQueueModel() }
  const epochs: Record<string, number[]> = { a: [0], b: [0] }
  const ids: string[] = ['unknown', '1-zz']

  for (const [n, step] of steps.entries()) {
    const same = (what: string, actual: unknown, expected: unknown) => {
      const [a, b] = [JSON.stringify(actual), JSON.stringify(expected)]
      if (a !== b) throw new Error(`call ${n}, ${JSON.stringify(step)}: ${what} is ${a}, and ${b} in the model`)
    }
    const touched = 'queue' in step ? [step.queue] : ['a', 'b']
    if ('queue' in step) {
      const context = { model: models[step.queue]!, epochs: epochs[step.queue]!, ids, same }
      await playStep(step, { ...context, connectionId: `${run} ${step.queue}`, store: pair[step.on]!, directory: directories[step.on]! })
    } else {
      await pool.query(`UPDATE queued_messages SET in_flight_until = in_flight_until - interval '1 hour'`)
      for (const model of Object.values(models)) model.hourPasses()
    }
    await Promise.all(touched.map((name) => compare(`${run} ${name}`, models[name]!, pair[n % 2]!, same)))
  }
}

/** Messages are the same when they have as many bytes. */
function toMessage(connectionId: string, { dids, bytes, key }: { dids: string[]; bytes: number; key: string | undefined }): NewMessage {
  return { connectionId, recipientDids: dids, payload: jsonBytes(`{"bytes":${bytes}}`), payloadBytes: bytes, idempotencyKey: key }
}

interface Context {
  model: QueueModel
  store: StoreByPromise
  directory: PostgresSessions
  connectionId: string
  epochs: number[]
  ids: string[]
  same: (what: string, actual: unknown, expected: unknown) => void
}

async function playStep(
  step: Extract<Step, { queue: string }>,
  { model, store, directory, connectionId, epochs, ids, same }: Context,
): Promise<void> {
  if ('messages' in step) {
    // At the same time, and so perhaps in one statement: they keep their order all the same.
    const epoch = step.claimForAge === undefined ? undefined : epochs.at(-1 - step.claimForAge)
    const claimFor = epoch === undefined ? undefined : { epoch, after: undefined, leaseMs: LEASE_MS }
    const calls = step.messages.map((message) => store.add({ ...toMessage(connectionId, message), claimFor }))
    for (const [i, { id, claimed }] of (await Promise.all(calls)).entries()) {
      const { key, bytes } = step.messages[i]!
      const known = key === undefined ? undefined : model.idOfKey(key, bytes)
      if (known === undefined) same('an id that was given before', ids.includes(id), false)
      else same('the id of the key', id, known)
      same('whether it is claimed', claimed !== undefined, known === undefined && model.add(id, step.messages[i]!, epoch))
      ids.push(id)
    }
  } else if ('remove' in step) {
    const taken = await store.take({ connectionId, recipientDid: step.did, leaseMs: LEASE_MS, ...step })
    same(
      'what is taken',
      taken.map(({ id }) => id),
      model.take(step),
    )
  } else if ('alone' in step) {
    const epoch = epochs.at(-1 - step.age) ?? 0
    const { messages, more, state } = await store.claim({ connectionId, epoch, leaseMs: LEASE_MS, ...step })
    const claimed = messages.map(({ id, deliveries }) => `${id} for the ${deliveries}. time`)
    same('what is claimed', { ids: claimed, more, state }, model.claim(epoch, step))
  } else if ('hasSocket' in step) {
    const { epoch, former } = await directory.open({ connectionId, sessionId: step.sessionId, ttlMs: step.hasSocket ? undefined : 600_000 })
    const displaced = model.open(step.sessionId, step.hasSocket, step.on)
    same('the session that was displaced', former?.epoch ?? null, displaced ?? null)
    same('a new epoch', epoch > epochs.at(-1)!, displaced !== undefined)
    if (displaced !== undefined) epochs.push(epoch)
    model.opened(epoch)
  } else if ('sessionId' in step) {
    const epoch = step.age === undefined ? undefined : epochs.at(-1 - step.age)
    const closed = await directory.close({ connectionId, epoch, sessionId: step.sessionId })
    same('whether a session ended', closed !== undefined, model.close(epoch, step.sessionId))
  } else if ('picks' in step) {
    const gone = step.picks.map((pick) => ids[pick % ids.length]!)
    await store.remove(connectionId, gone)
    model.remove(gone)
  } else {
    same('what is removed', (await store.removeAll(connectionId, step.did)).sort(), model.removeAll(step.did).sort())
  }
}

/** All that can be asked without changing anything. */
async function compare(connectionId: string, model: QueueModel, store: StoreByPromise, same: Context['same']): Promise<void> {
  const isWaiting = async (directory: PostgresSessions) =>
    (await directory.waiting(LEASE_MS)).some((session) => session.connectionId === connectionId)
  const [depth, count, countForDid, id, isLive, ...waiting] = await Promise.all([
    store.depth(connectionId),
    store.count(connectionId),
    store.count(connectionId, 'did:x'),
    store.idOfKey(toMessage(connectionId, { dids: [], bytes: 40, key: 'k1' })),
    directories[0].isLive(connectionId),
    ...directories.map(isWaiting),
  ])
  same('the depth', depth, model.depth())
  same('the count', [count, countForDid], [model.count(undefined), model.count('did:x')])
  same('the id of k1', id, model.idOfKey('k1', 40))
  same('whether it is live', isLive, model.current() !== undefined)
  same('which instances find it waiting', waiting, [model.isWaiting(0), model.isWaiting(1)])
}

async function check(pair: Pair<StoreByPromise>, seconds: number, options: { seed?: number; endOnFailure?: boolean } = {}) {
  let playing: Promise<void> | undefined
  const property = fc.asyncProperty(fc.array(step, { minLength: 10, maxLength: 40, size: 'max' }), (steps) => (playing = play(steps, pair)))
  return fc.check(
    property.afterEach(async () => {
      await playing?.catch(() => {}) // at the time limit it is left running, and its statements and TRUNCATE wait for each other
      await pool.query('TRUNCATE queued_messages, live_sessions, removed_keys')
    }),
    {
      seed,
      numRuns: 1_000_000,
      interruptAfterTimeLimit: seconds * 1_000,
      ...options,
    },
  )
}

t.test('two instances of the store answer as a queue in memory does', { timeout: 300_000 }, async (t) => {
  const run = await check(stores, isFull ? 120 : 8)
  t.comment(`seed ${seed}: ${run.numRuns} sequences of calls`)
  if (run.counterexample) t.fail(String(run.errorInstance), { seed, calls: run.counterexample[0].map((step) => JSON.stringify(step)) })
  t.ok(run.numRuns > 10, `${run.numRuns} sequences`)
})

// What finds nothing in a store that is wrong says nothing about one that is right. The seed is fixed, so that it is known to be enough.
const [store] = stores
const wrong: Record<string, Partial<StoreByPromise>> = {
  'hands out the newest first': { take: async (take) => (await store.take(take)).reverse() },
  'forgets deleteMessages': { take: (take) => store.take({ ...take, remove: false }) },
  'widens by recipientDid': { take: (take) => store.take({ ...take, recipientDid: undefined }) },
  'forgets a key with its message': {
    add: (message) => store.add(message.claimFor ? message : { ...message, payload: jsonBytes(`${message.payload.toString()} `) }),
  },
  'claims for a session that is over': {
    add: async (message) => ({ ...(await store.add(message)), ...(message.claimFor && { claimed: { receivedAt: '' } }) }),
  },
  'knows no idempotencyKey': { add: (message) => store.add({ ...message, idempotencyKey: undefined }) },
  'counts what is in flight': { count: async (connectionId) => (await store.depth(connectionId)).messages },
  'loses an ack': { remove: async () => {} },
  'never lets a lease run out': { claim: (claim) => store.claim({ ...claim, leaseMs: 7_200_000 }) },
  'claims what does not fit': { claim: (claim) => store.claim({ ...claim, alone: true }) },
}
for (const [what, change] of Object.entries(wrong)) {
  t.test(`a store that ${what} is found out`, async (t) => {
    const run = await check([stores[0], { ...stores[1], ...change }], 20, { seed: 1, endOnFailure: true })
    t.ok(run.counterexample, `after ${run.numRuns} sequences`)
    t.match(String(run.errorInstance), /in the model/)
  })
}
