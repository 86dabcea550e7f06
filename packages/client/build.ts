import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { basename, dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { build, type Plugin } from 'esbuild'
import ts from 'typescript'
import { readConfig } from '../../src/config.js'
import { createContract, type Operation } from '../../src/contract.js'

/**
 * `npm run build` of the client: dist/ as it is published.
 *
 *   index, credo, credo-0.5   .js (ESM) and .cjs; an adapter imports the index beside it, so there is one MessagePickupError
 *   index.browser.js          with the global WebSocket in the place of `ws`
 *   *.d.ts, *.d.cts           by tsc; `Methods` is written out, because an installed client has no service to import from
 */
const here = dirname(fileURLToPath(import.meta.url))
const src = join(here, 'src')
const dist = join(here, 'dist')
const ENTRIES = ['index', 'credo', 'credo-0.5']

rmSync(dist, { recursive: true, force: true })
mkdirSync(dist)
await Promise.all([
  ...ENTRIES.flatMap((entry) => [bundle(entry, 'esm', `${entry}.js`), bundle(entry, 'cjs', `${entry}.cjs`)]),
  bundle('index', 'esm', 'index.browser.js', [globalSocket()]),
])
declare()

async function bundle(entry: string, format: 'esm' | 'cjs', outfile: string, plugins: Plugin[] = []): Promise<void> {
  await build({
    entryPoints: [join(src, `${entry}.ts`)],
    outfile: join(dist, outfile),
    bundle: true,
    format,
    target: 'es2022',
    platform: 'neutral',
    external: ['ws'],
    logLevel: 'warning',
    plugins: [...plugins, ...(entry === 'index' ? [] : [besides(format)])],
  })
}

function besides(format: 'esm' | 'cjs'): Plugin {
  return {
    name: 'the index beside it',
    setup: ({ onResolve }) =>
      onResolve({ filter: /^\.\/index\.js$/ }, () => ({ path: format === 'esm' ? './index.js' : './index.cjs', external: true })),
  }
}

function globalSocket(): Plugin {
  return {
    name: 'global WebSocket',
    setup: ({ onResolve }) => onResolve({ filter: /\/socket-ws\.js$/ }, () => ({ path: join(src, 'socket-global.ts') })),
  }
}

function declare(): void {
  const { options } = ts.parseJsonConfigFileContent(
    ts.readConfigFile(join(here, '../../tsconfig.json'), (file) => readFileSync(file, 'utf8')).config,
    ts.sys,
    join(here, '../..'),
  )
  const files = ENTRIES.map((entry) => join(src, `${entry}.ts`))
  const program = ts.createProgram(files, { ...options, noEmit: false, declaration: true, emitDeclarationOnly: true, sourceMap: false })
  const failures = ts.getPreEmitDiagnostics(program)
  if (failures.length > 0) throw new Error(ts.formatDiagnostics(failures, ts.createCompilerHost(options)))
  for (const file of program.getSourceFiles()) {
    if (dirname(file.fileName) !== src) continue
    const name = basename(file.fileName, '.ts')
    program.emit(
      file,
      (_path, text) => {
        const own = name === 'contract' ? writeOut(program, file, text) : text
        writeFileSync(join(dist, `${name}.d.ts`), own)
        writeFileSync(join(dist, `${name}.d.cts`), own.replace(/(from '\.\/[^']+)\.js'/g, "$1.cjs'"))
      },
      undefined,
      true,
    )
  }
  for (const file of readdirSync(dist).filter((name) => name.includes('.d.'))) {
    const text = readFileSync(join(dist, file), 'utf8')
    for (const [, target] of text.matchAll(/from '([^']+)'|import\("([^"]+)"\)/g)) {
      if (!target?.startsWith('./')) throw new Error(`${file} imports ${target}, which nobody who installs it has`)
    }
  }
}

/** contract.d.ts with every method in full, as the compiler understands it. */
function writeOut(program: ts.Program, file: ts.SourceFile, text: string): string {
  const checker = program.getTypeChecker()
  const contract = createContract(readConfig({}).limits) as Record<string, Operation>
  const alias = file.statements.find(
    (node): node is ts.TypeAliasDeclaration => ts.isTypeAliasDeclaration(node) && node.name.text === 'Methods',
  )!
  const methods = checker
    .getTypeAtLocation(alias)
    .getProperties()
    .map((method) => {
      const [signature] = checker.getTypeOfSymbolAtLocation(method, alias).getCallSignatures()
      const [params] = signature!.getParameters()
      const fields = checker
        .getTypeOfSymbolAtLocation(params!, alias)
        .getProperties()
        .map((field) => {
          const isOptional = (field.flags & ts.SymbolFlags.Optional) !== 0
          const type = checker.getTypeOfSymbolAtLocation(field, alias)
          const { description = '' } = (contract[method.name]!.params.properties[field.name] ?? {}) as { description?: string }
          const comment = description && `        /** ${description} */\n`
          return `${comment}        ${field.name}${isOptional ? '?' : ''}: ${write(isOptional ? checker.getNonNullableType(type) : type)};`
        })
      const { summary, description } = contract[method.name]!
      return `    /** ${summary}. ${description} */\n    ${method.name}(params: {\n${fields.join('\n')}\n    }): ${write(signature!.getReturnType())};`
    })
  const kept = ts
    .createSourceFile('contract.d.ts', text, ts.ScriptTarget.ES2022, true)
    .statements.filter((node) => ts.isTypeAliasDeclaration(node) && node.modifiers)
    .map((node) =>
      (node as ts.TypeAliasDeclaration).name.text === 'Methods'
        ? `export interface Methods {\n${methods.join('\n')}\n}`
        : node.getFullText().trim(),
    )
    .join('\n')
  if (/FromWire|PayloadText/.test(kept)) throw new Error(`contract.d.ts is not self-contained:\n${kept}`)
  return kept

  function write(type: ts.Type): string {
    return checker.typeToString(type, undefined, ts.TypeFormatFlags.NoTruncation | ts.TypeFormatFlags.InTypeAlias)
  }
}
