import { fileURLToPath } from 'node:url'
import t from 'tap'

// A process of its own, without the hooks by which tap loads modules: with them Credo's dependencies require each other in a cycle.
t.setTimeout(170_000)
t.spawn(
  'sh',
  [
    '-c',
    'unset NODE_OPTIONS; exec "$0" "$@"',
    process.execPath,
    '--import',
    'tsx',
    fileURLToPath(new URL('credo-scenario.ts', import.meta.url)),
  ],
  { timeout: 170_000 },
  'real Credo agents',
)
