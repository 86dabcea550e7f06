import { existsSync, readFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'

/** What of the Dockerfile can be known without an engine: that it names what exists. */
const root = resolve(fileURLToPath(import.meta.url), '../..')
const read = (file: string) => readFileSync(join(root, file), 'utf8')
const instructions = read('Dockerfile')
  .replace(/^#.*\n/gm, '')
  .replace(/\\\n/g, '')
  .split('\n')
const copied = instructions
  .filter((line) => line.startsWith('COPY ') && !line.includes('--from='))
  .flatMap((line) => line.split(' ').slice(1, -1))
  .map((path) => path.replace(/\/$/, ''))

t.test('what the Dockerfile copies exists and is let through by .dockerignore', async (t) => {
  const allowed = [...read('.dockerignore').matchAll(/^!(.+)$/gm)].map((match) => match[1]!)
  t.ok(copied.length > 8, 'the instructions are found')
  for (const path of copied) {
    t.ok(existsSync(join(root, path)), `${path} exists`)
    t.ok(
      allowed.some((entry) => path === entry || path.startsWith(`${entry}/`)),
      `${path} is not ignored`,
    )
  }
})

t.test('every source of the build is copied, and the build makes what CMD starts', async (t) => {
  const { build } = (JSON.parse(read('package.json')) as { scripts: { build: string } }).scripts
  const sources = build.split(' ').flatMap((word) => /^'?([^'-][^'*]*)(\/\*\*\/\*)?\.ts'?$/.exec(word)?.[0].replaceAll("'", '') ?? [])
  t.ok(sources.length > 5, 'the sources are found')
  for (const source of sources) {
    t.ok(
      copied.some((path) => source === path || source.startsWith(`${path}/`)),
      `${source} is copied`,
    )
  }
  const command = JSON.parse(instructions.find((line) => line.startsWith('CMD '))!.slice(4)) as string[]
  const [made] = command.slice(-1)
  t.ok(build.includes('--outdir=dist'))
  t.ok(sources.includes(made!.replace('dist/', '').replace('.js', '.ts')), command.join(' '))
})
