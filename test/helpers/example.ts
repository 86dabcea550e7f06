import { readFileSync } from 'node:fs'

/** An example of a document: the script that stands below `<!-- example: name -->`, and what it is said to print. */
export function example(document: string, name: string): { script: string; expected: string } {
  const text = readFileSync(new URL(`../../${document}`, import.meta.url), 'utf8')
  const [, script, expected] = new RegExp(
    `<!-- example: ${name} -->\n\`\`\`sh\n([\\s\\S]*?)\`\`\`[\\s\\S]*?\`\`\`text\n([\\s\\S]*?)\`\`\``,
  ).exec(text)!
  return { script: script!, expected: expected! }
}

/** Lines without what differs from run to run, sorted: two of a WebSocket's may change places. */
export const comparable = (output: string) =>
  output
    .trim()
    .replace(/\d+-[0-9a-z]{1,6}(?=")/g, 'ID')
    .replace(/\d{4}-\d\d-\d\dT[\d:.]+Z/g, 'TIME')
    .replace(/"[0-9a-f]{8}-[0-9a-f-]{27}"/g, '"UUID"')
    .split('\n')
    .sort()
