import { setImmediate as turn } from 'node:timers/promises'
import t from 'tap'
import { createCoalescer } from '../plugins/storage/coalesce.js'

interface Batch {
  items: string[]
  end(): void
  fail(error: Error): void
}

/** Items are named after their lane: `a1`, `b1`. Batches end when the test says so. */
function start(options: { maxItems?: number; maxWaitingBytes?: number } = {}) {
  const batches: Batch[] = []
  const add = createCoalescer<string, string>({
    key: (item) => item[0]!,
    bytes: () => 1,
    flush: (items) =>
      new Promise((resolve, reject) => {
        batches.push({ items, end: () => resolve(items.map((item) => item.toUpperCase())), fail: reject })
      }),
    ...{ lanes: 2, maxItems: 100, maxBytes: 100, maxWaitingBytes: 1_000, maxWaitMs: 1_000, ...options },
  })
  return { batches, add, begun: () => batches.map(({ items }) => items.join(' ')) }
}

t.test('what comes in one turn, and what comes while a batch is under way, is one batch each', async (t) => {
  const { batches, add, begun } = start()
  const answers = ['a1', 'a2'].map(add)
  await turn()
  answers.push(add('a3'), add('a4'))
  await turn()
  t.same(begun(), ['a1 a2'])
  batches[0]!.end()
  await turn()
  t.same(begun(), ['a1 a2', 'a3 a4'])
  batches[1]!.end()
  t.same(await Promise.all(answers), ['A1', 'A2', 'A3', 'A4'])
})

t.test('a quick batch is waited for by the other lane, and then they take turns', async (t) => {
  const { batches, add, begun } = start()
  const answers = ['a1', 'b1'].map(add)
  await turn()
  t.same(begun(), ['a1'])
  answers.push(add('a2'), add('b2'))
  for (const batch of [0, 1, 2]) {
    batches[batch]!.end()
    await turn()
  }
  t.same(begun(), ['a1', 'b1 b2', 'a2'])
  t.same(await Promise.all(answers), ['A1', 'B1', 'A2', 'B2'])
})

t.test('a slow batch holds up nothing but its own lane', async (t) => {
  const { batches, add, begun } = start()
  const slow = add('a1')
  await turn()
  const behind = add('a2')
  const beside = add('b1')
  const startedAt = performance.now()
  while (batches.length < 2) await turn()
  t.ok(performance.now() - startedAt < 500, 'soon')
  batches[1]!.end()
  t.equal(await beside, 'B1')
  t.same(begun(), ['a1', 'b1'])
  batches[0]!.end()
  t.equal(await slow, 'A1')
  await turn()
  batches[2]!.end()
  t.equal(await behind, 'A2')
})

t.test('a batch that fails ends its turn too', async (t) => {
  const { batches, add, begun } = start()
  const failing = t.rejects(add('a1'), { message: 'no' })
  const other = add('b1')
  await turn()
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
  await turn()
  batches[1]!.end()
  await Promise.all(two)
  const third = add('a3')
  await turn()
  batches[2]!.end()
  t.equal(await third, 'A3')
})
