import { setImmediate as turn } from 'node:timers/promises'
import t from 'tap'
import { createCoalescer } from '../plugins/storage/coalesce.js'
import { promised } from '../src/told.js'

interface Batch {
  items: string[]
  end(): void
  fail(error: Error): void
}

/** Items are named after their key: `a1`, `b1`. Batches end when the test says so. */
function start(options: { maxWaitingBytes?: number; key?: (item: string) => string } = {}) {
  const batches: Batch[] = []
  const coalesced = createCoalescer<string, string>({
    key: (item) => item[0]!,
    bytes: () => 1,
    flush: (items) =>
      new Promise((resolve, reject) => {
        batches.push({ items, end: () => resolve(items.map((item) => item.toUpperCase())), fail: reject })
      }),
    ...{ atOnce: 2, maxItems: 100, maxBytes: 100, maxWaitingBytes: 1_000, maxWaitMs: 1_000, ...options },
  })
  const add = (item: string) => promised<string>((told) => coalesced(item, told))
  return { batches, add, coalesced, begun: () => batches.map(({ items }) => items.join(' ')) }
}

for (const [keys, [first, second, third, fourth]] of [
  ['of one key', ['a1', 'a2', 'a3', 'a4']],
  ['of several keys', ['a1', 'b1', 'a2', 'c1']],
] as const) {
  t.test(`what comes in one turn, and what comes while a quick batch is under way, is one batch each, ${keys}`, async (t) => {
    const { batches, add, begun } = start()
    const answers = [add(first), add(second)]
    await turn()
    answers.push(add(third), add(fourth))
    await turn()
    t.same(begun(), [`${first} ${second}`])
    batches[0]!.end()
    await turn()
    t.same(begun(), [`${first} ${second}`, `${third} ${fourth}`])
    batches[1]!.end()
    t.same(
      await Promise.all(answers),
      [first, second, third, fourth].map((item) => item.toUpperCase()),
    )
  })
}

t.test('beside a quick batch another begins when it is as large, and no more than may be at once', async (t) => {
  const { batches, add } = start()
  const items = Array.from({ length: 260 }, (_, i) => String.fromCharCode(1_000 + i)) // each its own key
  const sizes = () => batches.map(({ items }) => items.length)
  const first = items.slice(0, 80).map(add)
  await turn()
  const second = items.slice(80, 159).map(add)
  await turn()
  t.same(sizes(), [80], 'one less')
  second.push(add(items[159]!))
  await turn()
  t.same(sizes(), [80, 80])
  const third = items.slice(160, 260).map(add)
  await turn()
  t.same(sizes(), [80, 80], 'no more than may be at once')
  batches[0]!.end()
  await turn()
  t.same(sizes(), [80, 80, 100])
  for (const { end } of batches.slice(1)) end()
  t.same(
    await Promise.all([...first, ...second, ...third]),
    items.map((item) => item.toUpperCase()),
  )
})

t.test('of more than a batch holds the rest begins beside it at once, when it is no small one', async (t) => {
  const { batches, add } = start()
  const items = Array.from({ length: 230 }, (_, i) => String.fromCharCode(1_000 + i)) // each its own key
  const answers = items.slice(0, 150).map(add)
  await turn()
  const sizes = () => batches.map(({ items }) => items.length)
  t.same(sizes(), [100], 'of 50 it is not worth it')
  answers.push(...items.slice(150).map(add))
  await turn()
  t.same(sizes(), [100, 100])
  batches[0]!.end()
  await turn()
  t.same(sizes(), [100, 100], 'nor of 30')
  batches[1]!.end()
  await turn()
  t.same(sizes(), [100, 100, 30])
  batches[2]!.end()
  t.same(
    await Promise.all(answers),
    items.map((item) => item.toUpperCase()),
  )

  const { batches: more, add: addMore } = start()
  const many = items.map(addMore)
  await turn()
  t.same(
    more.map(({ items }) => items.length),
    [100, 100],
  )
  for (const { end } of more) end()
  await turn()
  more[2]!.end()
  await Promise.all(many)
})

t.test('the next batch has left before the callers of the one before it are answered', async (t) => {
  const said: string[] = []
  const coalesced = createCoalescer<string, string>({
    ...{ key: (item) => item, bytes: () => 1, atOnce: 2, maxItems: 100, maxBytes: 100, maxWaitingBytes: 1_000, maxWaitMs: 1_000 },
    async flush(items) {
      await new Promise<void>((resolve) => process.nextTick(resolve)) // as pg's pool
      said.push(`${items.join(' ')} left`)
      await turn()
      return items
    },
  })
  const add = (item: string) => promised<string>((told) => coalesced(item, told))
  const first = add('a').then(() => said.push('a answered'))
  await turn()
  await Promise.all([first, add('b').then(() => said.push('b answered'))])
  t.same(said, ['a left', 'b left', 'a answered', 'b answered'])
})

t.test('beside a quick batch none begins that has only what is behind it, nor is that looked through for each that comes', async (t) => {
  let looks = 0
  const { batches, add, begun } = start({ key: (item) => (looks++, item[0]!) })
  const first = add('a0')
  await turn()
  const behind: Promise<string>[] = []
  for (let i = 0; i < 90; i++) {
    behind.push(add(`a${i}`))
    await turn()
  }
  t.same(begun(), ['a0'])
  t.ok(looks < 3 * 90, `${looks} looks`)
  batches[0]!.end()
  await first
  await turn()
  t.equal(batches[1]!.items.length, 90)
  batches[1]!.end()
  await Promise.all(behind)
})

t.test('a slow batch holds up nothing but its own keys, and they keep their order', async (t) => {
  const { batches, add, begun } = start()
  const slow = ['a1', 'b1'].map(add)
  await turn()
  const behind = ['a2', 'b2', 'a3'].map(add)
  const beside = ['c1', 'd1'].map(add)
  const startedAt = performance.now()
  while (batches.length < 2) await turn()
  t.ok(performance.now() - startedAt < 500, 'soon')
  const later = ['c2', 'a4', 'e1'].map(add)
  batches[1]!.end()
  t.same(await Promise.all(beside), ['C1', 'D1'])
  await turn()
  t.same(begun(), ['a1 b1', 'c1 d1', 'c2 e1'], 'as soon as there is a place')
  batches[0]!.end()
  t.same(await Promise.all(slow), ['A1', 'B1'])
  batches[2]!.end()
  await turn()
  t.same(begun(), ['a1 b1', 'c1 d1', 'c2 e1', 'a2 b2 a3 a4'])
  batches[3]!.end()
  t.same(await Promise.all([...behind, ...later]), ['A2', 'B2', 'A3', 'C2', 'A4', 'E1'])
})

t.test('when as many batches as may be are slow, what comes waits', async (t) => {
  const { batches, add, begun } = start()
  const answers = [add('a1')]
  while (batches.length < 1) await turn()
  answers.push(add('b1'))
  while (batches.length < 2) await turn()
  answers.push(add('c1'))
  for (const until = performance.now() + 50; performance.now() < until;) await turn()
  t.same(begun(), ['a1', 'b1'])
  batches[0]!.end()
  await turn()
  t.same(begun(), ['a1', 'b1', 'c1'])
  for (const { end } of batches.slice(1)) end()
  t.same(await Promise.all(answers), ['A1', 'B1', 'C1'])
})

t.test('a batch that fails ends its turn too', async (t) => {
  const { batches, add, begun } = start()
  const failing = t.rejects(add('a1'), { message: 'no' })
  await turn()
  const other = add('b1')
  batches[0]!.fail(new Error('no'))
  await failing
  await turn()
  t.same(begun(), ['a1', 'b1'])
  batches[1]!.end()
  t.equal(await other, 'B1')
})

t.test('what would be too much is refused, and does not count once the rest is done', async (t) => {
  const { batches, add } = start({ maxWaitingBytes: 2 })
  const two = ['a1', 'b1'].map(add)
  await t.rejects(add('a2'), { code: 'overloaded' })
  await turn()
  batches[0]!.end()
  await Promise.all(two)
  const third = add('a3')
  await turn()
  batches[1]!.end()
  t.equal(await third, 'A3')
})

t.test('what fails in making something of its answer does not keep others of its batch from theirs', async (t) => {
  const { coalesced, batches } = start()
  const told: string[] = []
  const thrown = new Promise<Error>((resolve) => {
    const fail = process.listeners('uncaughtException')
    process.removeAllListeners('uncaughtException')
    process.once('uncaughtException', (error) => {
      for (const listener of fail) process.on('uncaughtException', listener)
      resolve(error)
    })
  })
  coalesced('a', () => {
    throw new Error('a fault')
  })
  coalesced('b', (result) => told.push(String(result)))
  await turn()
  batches[0]!.end()
  t.match(await thrown, { message: 'a fault' })
  t.same(told, ['B'])
})
