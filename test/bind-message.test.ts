import { createRequire } from 'node:module'
import t from 'tap'
import { bindMessage, type Value } from '../plugins/storage/bind-message.js'

/** Comes with pg, which sends the same message by it. */
const { serialize } = createRequire(createRequire(import.meta.url).resolve('pg'))('pg-protocol') as {
  serialize: { bind(config: { statement: string; values: Value[] }): Buffer }
}

const large = Buffer.alloc(100_000, 'large')
const CASES: [string, Value[]][] = [
  ['no parameter', []],
  ['texts, also empty and not of ASCII', ['1', '', 'ünï😀', 'x'.repeat(50_000)]],
  ['null and nothing', [null, Buffer.alloc(0)]],
  ['a large one last', ['1', Buffer.from([0, 255]), null, large]],
  ['large ones among others', [large, 'between', large, large, Buffer.from('behind')]],
]
for (const [what, values] of CASES) {
  t.test(`${what}: the message is that of pg`, async (t) => {
    const parts = bindMessage('name of the statement', values)
    t.ok(Buffer.concat(parts).equals(serialize.bind({ statement: 'name of the statement', values })))
  })
}

t.test('large values are sent as they are, and small ones with the rest', async (t) => {
  const parts = bindMessage('add', ['1', large, Buffer.from('small')])
  t.equal(parts.length, 3)
  t.equal(parts[1], large)
})
