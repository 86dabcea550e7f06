import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'

/*
 * Credo 0.5 and what it depends on are 688 packages, half a gigabyte, one of which ends an install that runs its scripts. So it is not a
 * dependency of ours: `npm i --prefix /tmp/credo-0.5 --ignore-scripts @credo-ts/core@0.5`, and CREDO_05=/tmp/credo-0.5 npm test.
 */
const folder = process.env.CREDO_05
const skip = !(folder && existsSync(join(folder, 'node_modules/@credo-ts/core'))) && 'no CREDO_05: see test/client/credo-0.5.test.ts'

t.test('a mediator of Credo 0.5 has the service as its queue', { skip }, async (t) => {
  // Without the hooks of tap, as in credo.test.ts.
  const scenario = fileURLToPath(new URL('credo-0.5-scenario.ts', import.meta.url))
  await t.spawn('sh', ['-c', 'unset NODE_OPTIONS; exec "$0" "$@"', process.execPath, '--import', 'tsx', scenario], { timeout: 60_000 })
})
