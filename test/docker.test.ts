import { existsSync, readFileSync } from 'node:fs'
import { join, relative, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import ts from 'typescript'

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
  const config: unknown = ts.readConfigFile(join(root, 'tsconfig.build.json'), (file) => ts.sys.readFile(file)).config
  const { fileNames, options } = ts.parseJsonConfigFileContent(config, ts.sys, root)
  for (const file of fileNames) {
    t.ok(
      copied.some((path) => file === join(root, path) || file.startsWith(join(root, path, '/'))),
      `${file} is copied`,
    )
  }
  const command = JSON.parse(instructions.find((line) => line.startsWith('CMD '))!.slice(4)) as string[]
  const source = join(root, relative(options.outDir!, join(root, command.at(-1)!)).replace(/\.js$/, '.ts'))
  t.ok(fileNames.includes(source), command.join(' '))
})
