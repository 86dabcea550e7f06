import { readFileSync } from 'node:fs'
import t from 'tap'

/*
 * docs/guarantees.md ties each sentence of the promise to the tests that hold it. A test that is renamed, moved or deleted makes its
 * sentence a mere claim, and so this fails.
 */

const read = (path: string) => readFileSync(new URL(`../${path}`, import.meta.url), 'utf8')

interface Row {
  promise: string
  heldBy: { file: string; name: string }[]
}

function rowsOf(text: string): Row[] {
  const rows = [...text.matchAll(/^\| (?!the promise |-)(.+?) \| (.+) \|$/gm)].filter(([line]) => !/^\|[-|]+\|$/.test(line))
  return rows.map(([, promise, holders]) => ({
    promise: promise!,
    heldBy: [...holders!.matchAll(/\[([^\]]+)\]\(\.\.\/([^)]+)\) “([^”]+)”/g)].map(([, , file, name]) => ({ file: file!, name: name! })),
  }))
}

/** Whether the file has a test of this name, and does not only speak of it. */
function hasTest(file: string, name: string): boolean {
  const escaped = name.replace(/[.*+?^${}()|[\]\\]/g, '\\$&').replaceAll("'", "\\\\?'")
  return new RegExp(`\\b(?:test|scenario)\\(\\s*(['"\`])${escaped}\\1`).test(read(file))
}

const rows = rowsOf(read('docs/guarantees.md'))

t.test('every sentence of docs/guarantees.md names tests, and they exist', async (t) => {
  t.ok(rows.length > 30, `${rows.length} sentences`)
  for (const { promise, heldBy } of rows) {
    t.ok(heldBy.length > 0, `${promise}: held by something`)
    for (const { file, name } of heldBy) t.ok(hasTest(file, name), `${file}: ${name}`)
  }
})

t.test('a test that does not exist is noticed', async (t) => {
  const [row] = rowsOf(
    '| the promise | held by |\n|---|---|\n| It holds. | [test/guarantees.test.ts](../test/guarantees.test.ts) “no such test” |\n',
  )
  t.same(row, { promise: 'It holds.', heldBy: [{ file: 'test/guarantees.test.ts', name: 'no such test' }] })
  t.notOk(hasTest('test/guarantees.test.ts', 'no such test'))
  t.ok(hasTest('test/guarantees.test.ts', 'a test that does not exist is noticed'))
})

t.test('what the README promises is in docs/guarantees.md, in the same words', async (t) => {
  const [, section] = /## What it promises\n([\s\S]*?)\n## /.exec(read('README.md'))!
  const sentences = [...section!.matchAll(/^\| (?!the promise |-)(.+?) \| /gm)].map(([, sentence]) => sentence!)
  t.ok(sentences.length > 10, 'the sentences are found')
  const promises = new Set(rows.map(({ promise }) => promise))
  for (const sentence of sentences) t.ok(promises.has(sentence), sentence)
})
