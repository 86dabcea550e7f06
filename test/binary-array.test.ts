import t from 'tap'
import { bigintArray, intArray, textArray, utf8Array } from '../plugins/storage/binary-array.js'

const int = (value: number) => {
  const bytes = Buffer.alloc(4)
  bytes.writeInt32BE(value)
  return bytes
}

/** [array_recv] What Postgres reads: dimensions, whether there may be nulls, the type of the elements, their number, the first index; the elements. */
function encoded(type: number, elements: (Buffer | null)[]): Buffer {
  const all = elements.flatMap((element) => (element ? [int(element.length), element] : [int(-1)]))
  return Buffer.concat([int(1), int(1), int(type), int(elements.length), int(1), ...all])
}

const texts = {
  none: [],
  'short ones of ASCII': ['', 'a', 'did:key:z6Mk', 'x'.repeat(127)],
  'a longer one': ['a', 'x'.repeat(128), 'b'],
  'a very long one': ['a', 'x'.repeat(70_000)],
  'other letters': ['a', 'é', '日本', '😀', 'b'],
  'a lone surrogate': ['a', '\ud800'],
  'one that is missing': ['a', null, undefined, 'b'],
}

for (const [what, given] of Object.entries(texts)) {
  t.test(`texts: ${what}`, async (t) => {
    const bytes = given.map((text) => (text == null ? null : Buffer.from(text)))
    t.same(textArray(given), encoded(25, bytes))
    if (bytes.every((text) => text !== null)) t.same(utf8Array(bytes), encoded(25, bytes))
  })
}

t.test('numbers', async (t) => {
  const ints = [0, 1, -1, 255, 256, 2 ** 31 - 1, -(2 ** 31)]
  t.same(intArray(ints), encoded(23, ints.map(int)))
  const bigints = ['0', '-1', String(2n ** 63n - 1n), 7, null, undefined]
  const eight = (value: string | number) => {
    const bytes = Buffer.alloc(8)
    bytes.writeBigInt64BE(BigInt(value))
    return bytes
  }
  t.same(
    bigintArray(bigints),
    encoded(
      20,
      bigints.map((value) => (value == null ? null : eight(value))),
    ),
  )
})
