import { execFileSync } from 'node:child_process'
import t from 'tap'

/** Runs a module in a V8 that tells how it keeps its objects. @returns what it wrote */
function run(code: string): string {
  const args = ['--allow-natives-syntax', '--import', 'tsx', '--input-type=module', '--eval', code]
  return execFileSync(process.execPath, args, { encoding: 'utf8', env: { ...process.env, NODE_OPTIONS: '' } })
}

const IS_FAST = `new Function('o', 'return %HasFastProperties(o)')(String.prototype)`

t.test('the methods of strings are found at once, although ioredis made a class of them', async (t) => {
  // When this fails the mend is not needed any more.
  t.equal(run(`await import('ioredis'); console.log(${IS_FAST})`), 'false\n', 'without the mend they are not')
  t.equal(run(`await import('ioredis'); (await import('./src/v8.ts')).tuneV8(); console.log(${IS_FAST})`), 'true\n')
})
