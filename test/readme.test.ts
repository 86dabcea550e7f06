import { execFile } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import { promisify } from 'node:util'
import t from 'tap'
import { startService } from './helpers/service.js'

const readme = readFileSync(new URL('../README.md', import.meta.url), 'utf8')
const service = await startService(t)

/** Lines without what differs from run to run. Two of the WebSocket's may change places. */
const comparable = (output: string) =>
  output
    .trim()
    .replace(/\d+-[0-9a-z]{1,6}(?=")/g, 'ID')
    .replace(/\d{4}-\d\d-\d\dT[\d:.]+Z/g, 'TIME')
    .split('\n')
    .sort()

for (const name of ['curl', 'websocket']) {
  t.test(`the ${name} example of the README prints what the README says`, async (t) => {
    const [, script, expected] = new RegExp(
      `<!-- example: ${name} -->\n\`\`\`sh\n([\\s\\S]*?)\`\`\`[\\s\\S]*?\`\`\`text\n([\\s\\S]*?)\`\`\``,
    ).exec(readme)!
    const { stdout } = await promisify(execFile)('bash', ['-c', script!.replaceAll('127.0.0.1:3000', service.url.replace('http://', ''))])
    t.same(comparable(stdout), comparable(expected!))
  })
}

t.test('every file that the README links to exists', async (t) => {
  for (const [, path] of readme.matchAll(/\]\((?!https?:)([^)#]+)\)/g)) {
    t.ok(existsSync(new URL(`../${path}`, import.meta.url)), path!)
  }
})
