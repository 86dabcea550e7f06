import { readFileSync, writeFileSync } from 'node:fs'
import { gzipSync } from 'node:zlib'
import type { TSchema } from '@sinclair/typebox'
import { build } from 'esbuild'
import { mayRepeat, METHODS } from '../packages/client/src/repeat.js'
import { describeConfig, readConfig } from '../src/config.js'
import { createContract, type Operation } from '../src/contract.js'
import { errorTable } from '../src/errors.js'

/** `npm run docs`: writes what the documents say from the one place that knows it; with --check only compares. */

/** [file, name of the block, text]. A block is between `<!-- name -->` and `<!-- /name -->`. */
const BLOCKS: [string, string, string][] = [
  ['README.md', 'config', describeConfig('markdown')],
  ['docs/protocol.md', 'methods', methods()],
  ['docs/protocol.md', 'errors', errors()],
]

const check = process.argv.includes('--check')
// Its last digit depends on the compressor, so it is compared by test/client/package.test.ts, which allows for that.
if (!check) BLOCKS.push(['packages/client/README.md', 'size', await sizes()])

const files = new Map<string, string>()
for (const [name, block, text] of BLOCKS) {
  const before = files.get(name) ?? read(name)
  files.set(
    name,
    before.replace(new RegExp(`(<!-- ${block} -->\n)[\\s\\S]*(<!-- /${block} -->)`), (_, start, end) => `${start}${text}\n${end}`),
  )
}
const stale = [...files].filter(([name, text]) => text !== read(name))
if (check && stale.length > 0) {
  console.error(`${stale.map(([name]) => name).join(', ')}: stale. Run: npm run docs`)
  process.exit(1)
}
for (const [name, text] of stale) writeFileSync(urlOf(name), text)

function urlOf(name: string): URL {
  return new URL(`../${name}`, import.meta.url)
}

function read(name: string): string {
  return readFileSync(urlOf(name), 'utf8')
}

function table(head: string[], rows: string[][]): string {
  return [head, head.map(() => '---'), ...rows]
    .map((cells) => `| ${cells.join(' | ')} |`)
    .join('\n')
    .replaceAll('| --- ', '|---')
    .replace(/--- \|$/m, '---|')
}

function methods(): string {
  const contract = createContract(readConfig({}).limits) as Record<string, Operation>
  return table(
    ['method', 'params', 'result', 'repeat'],
    Object.entries(contract).map(([name, { summary, params, result }]) => [
      `\`${name}\`<br>${summary}`,
      Object.entries(params.properties)
        .map(([field, schema]) => `\`${field}${params.required?.includes(field) ? '' : '?'}\` ${typeOf(schema)}`)
        .join('<br>'),
      typeOf(result),
      name === 'takeFromQueue' ? 'yes; no with `deleteMessages`' : mayRepeat(name as keyof typeof METHODS, {}) ? 'yes' : 'no',
    ]),
  )
}

function errors(): string {
  return table(
    ['`data.code`', '`code`', 'HTTP', 'retryable'],
    Object.entries(errorTable).map(([name, { code, status, retryable }]) => [
      `\`${name}\``,
      `${code}`,
      `${status}`,
      retryable ? 'yes' : 'no',
    ]),
  )
}

function typeOf(schema: TSchema): string {
  if (Array.isArray(schema.anyOf)) return (schema.anyOf as TSchema[]).map(typeOf).join(' or ')
  if (schema.const !== undefined) return String(schema.const)
  if (schema.type === 'array') return `array of ${typeOf(schema.items as TSchema)}`
  if (schema.type === 'object' && Object.keys((schema.properties ?? {}) as object).length > 0)
    return `{${Object.keys(schema.properties as object).join(', ')}}`
  return schema.format === 'date-time' ? 'ISO 8601' : String(schema.type)
}

/** Each entry with all it imports, as a bundler would take it. */
async function sizes(): Promise<string> {
  const rows = []
  for (const [entry, file] of [
    ['.', 'index'],
    ['./credo', 'credo'],
    ['./credo-0.5', 'credo-0.5'],
  ]) {
    const { outputFiles } = await build({
      entryPoints: [new URL(`../packages/client/src/${file}.ts`, import.meta.url).pathname],
      bundle: true,
      minify: true,
      format: 'esm',
      target: 'es2022',
      external: ['ws'],
      write: false,
    })
    rows.push([`\`${entry}\``, `${(gzipSync(outputFiles[0]!.contents).length / 1024).toFixed(1)} KB`])
  }
  return table(['entry', 'minified and compressed, without `ws`'], rows)
}
