import { readdirSync, readFileSync } from 'node:fs'
import { builtinModules } from 'node:module'
import { dirname, join, relative, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { describeConfig } from '../src/config.js'

const root = resolve(dirname(fileURLToPath(import.meta.url)), '..')

/** Who may import whom. A folder that is not listed here may import anything. */
const RULES: Record<string, (target: string) => boolean> = {
  'src/': (target) => target.startsWith('src/') || target.startsWith('node:') || target.startsWith('@sinclair/typebox'),
  'routes/': (target) => target.startsWith('src/') || target.startsWith('node:') || ['fastify', '@sinclair/typebox', 'ws'].includes(target),
  'plugins/': (target) =>
    !target.startsWith('routes/') && !['app.ts', 'server.ts'].includes(target) && !/^(test|bench|examples|docs)\//.test(target),
  'drizzle/': (target) => target.startsWith('drizzle-orm'),
  'packages/client/src/': (target) => target.startsWith('packages/client/src/') || ['src/contract.ts', 'ws'].includes(target),
  'app.ts': (target) => /^(src|plugins|routes)\//.test(target) || target === 'fastify',
  'server.ts': (target) => /^(src|plugins)\//.test(target) || ['app.ts', 'fastify', 'close-with-grace', 'node:v8'].includes(target),
}

function sources(folder: string): string[] {
  return readdirSync(join(root, folder), { withFileTypes: true }).flatMap((entry) => {
    const path = join(folder, entry.name)
    if (entry.isDirectory()) return ['migrations', 'node_modules'].includes(entry.name) ? [] : sources(path)
    return path.endsWith('.ts') ? [path] : []
  })
}

function importsOf(file: string): string[] {
  const text = readFileSync(join(root, file), 'utf8')
  return [...text.matchAll(/^(?:import|export)\s[^'"]*?from\s+'([^']+)'|^import\s+'([^']+)'|\bimport\('([^']+)'\)/gm)].map((match) => {
    const target = match[1] ?? match[2] ?? match[3]!
    return target.startsWith('.') ? relative(root, resolve(root, dirname(file), target)).replace(/\.js$/, '.ts') : target
  })
}

t.test('imports go in the directions of the house', async (t) => {
  const files = ['app.ts', 'server.ts', ...['src', 'plugins', 'routes', 'drizzle', 'packages/client/src'].flatMap(sources)]
  t.ok(files.length > 25, 'the files are found')
  t.ok(importsOf('app.ts').includes('routes/rpc.ts'), 'imports are understood')
  for (const file of files) {
    const rule = Object.entries(RULES).find(([place]) => file.startsWith(place))![1]
    for (const target of importsOf(file)) t.ok(rule(target), `${file} may import ${target}`)
  }
})

t.test('the client takes types from the contract, and nothing else of the service', async (t) => {
  const imports = sources('packages/client/src').flatMap((file) =>
    readFileSync(join(root, file), 'utf8')
      .split('\n')
      .filter((line) => line.includes("'../../../")),
  )
  t.ok(imports.length > 0, 'it does')
  for (const line of imports) t.match(line, /^import type \{.*\} from '\.\.\/\.\.\/\.\.\/src\/contract\.js'$/)
})

t.test('what is built in is imported as node:', async (t) => {
  for (const file of ['src', 'plugins', 'routes'].flatMap(sources)) {
    for (const target of importsOf(file)) t.notOk(builtinModules.includes(target), `${file}: ${target}`)
  }
})

t.test('the version is that of package.json', async (t) => {
  const { version } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as { version: string }
  t.match(readFileSync(join(root, 'plugins/pickup.ts'), 'utf8'), `'${version}'`)
})

t.test('README has the table of settings as the schema has it', async (t) => {
  t.match(readFileSync(join(root, 'README.md'), 'utf8'), describeConfig('markdown'))
})
