import { execFileSync } from 'node:child_process'
import t from 'tap'

/** Runs a module in a V8 that tells how it keeps its objects. @returns what it wrote */
function run(code: string, flags: string[] = []): string {
  const args = ['--allow-natives-syntax', ...flags, '--import', 'tsx', '--input-type=module', '--eval', code]
  return execFileSync(process.execPath, args, { encoding: 'utf8', env: { ...process.env, NODE_OPTIONS: '' } })
}

const IS_FAST = `new Function('o', 'return %HasFastProperties(o)')(String.prototype)`

t.test('the methods of strings are found at once, although ioredis made a class of them', async (t) => {
  // When this fails the mend is not needed any more.
  t.equal(run(`await import('ioredis'); console.log(${IS_FAST})`), 'false\n', 'without the mend they are not')
  t.equal(run(`await import('ioredis'); (await import('./src/v8.ts')).tuneV8(); console.log(${IS_FAST})`), 'true\n')
})

t.test('all messages have one hidden class, whatever is asked for them: what reads them stays fast', async (t) => {
  const code = `
    const { createPickup } = await import('./src/pickup.ts')
    const { createQuota } = await import('./src/quota.ts')
    const { createLiveSessions } = await import('./src/live-sessions.ts')
    const { createInProcessPubSub } = await import('./plugins/pubsub/in-process.ts')
    const seen = []
    const store = { add: (message, told) => (seen.push(message), process.nextTick(told, { id: '1-a' })), claim: async () => ({ state: 'current', messages: [] }) }
    const directory = { open: async () => ({ epoch: 1 }) }
    const now = () => performance.now()
    const liveSessions = createLiveSessions({ store, directory, pubsub: createInProcessPubSub(), log: console, now, leaseMs: 0 })
    const quota = createQuota({ messages: 1_000, bytes: 1_000_000 }, store, now)
    const pickup = createPickup({ store, liveSessions, quota, limits: { maxPayloadBytes: 1_000 } })
    const socket = { id: 's', isOpen: true, bufferedBytes: 0, send: () => {} }
    const add = (connectionId, more) =>
      new Promise((succeed, fail) => pickup.addMessage({ connectionId, recipientDids: ['did'], payload: '{}', ...more }, {}, { succeed, fail }))
    await pickup.addLiveSession({ connectionId: 'live', sessionId: 's' }, { socket })
    for (const connectionId of ['first', 'first', 'live', 'live']) {
      await add(connectionId)
      await new Promise(setImmediate) // until it was looked whether more waits
    }
    await add('other', { idempotencyKey: 'key', receivedAt: '2026-01-31T12:00:00Z' })
    const isLike = new Function('a', 'b', 'return %HaveSameMap(a, b)')
    const asked = seen.map(({ claimFor, ifAtMost }) => (claimFor ? 'claim ' : '') + (ifAtMost ? 'bound' : ''))
    console.log(JSON.stringify({ asked, alike: seen.every((message) => isLike(message, seen[0])) }))`
  const asked = ['bound', '', 'claim bound', 'claim ', 'bound']
  t.same(JSON.parse(run(code)), { asked, alike: true })
})

t.test('what a batch held is not kept until the next full collection', async (t) => {
  // Such objects as the batches of the service lie among: those that a full collection has left.
  const code = `
    const { createCoalescer } = await import('./plugins/storage/coalesce.ts')
    const { getHeapSpaceStatistics } = await import('node:v8')
    const ends = []
    const flush = (items) => new Promise((resolve) => ends.push(() => resolve(items)))
    const limits = { maxItems: 64, maxBytes: 64, maxWaitingBytes: 1_000, maxWaitMs: 1_000 }
    const add = createCoalescer({ key: ([n]) => String(n), bytes: () => 1, flush, atOnce: 2, ...limits })
    let n = 0
    const batch = () => {
      for (let i = 0; i < 64; i++) add(new Array(1_000).fill(n++), () => {})
      return new Promise(setImmediate)
    }
    const round = async () => {
      ends.shift()()
      await new Promise(setImmediate)
      await batch()
    }
    await batch()
    await batch()
    for (let i = 0; i < 20; i++) await round()
    gc(), gc()
    const old = () => getHeapSpaceStatistics().find(({ space_name }) => space_name === 'old_space').space_used_size
    let before
    for (let i = 0; i < 200; i++) {
      if (i === 10) before = old()
      await round()
      if (i % 6 === 0) gc({ type: 'minor' })
    }
    console.log(Math.round((old() - before) / 190 / 8_000), ends.length)`
  const [itemsKept, underWay] = run(code, ['--expose-gc']).trim().split(' ').map(Number)
  t.equal(underWay, 2, 'one was always beside another')
  t.ok(itemsKept! <= 2, `of each batch ${itemsKept} items of 64 are kept`)
})
