import { execFileSync } from 'node:child_process'
import { appendFileSync, existsSync, readFileSync, writeFileSync } from 'node:fs'
import { cpus } from 'node:os'
import { join } from 'node:path'
import type { Outcomes } from './client.js'
import type { Report } from './ledger.js'

/** Each scenario leaves a row in the folder FAULTS_RESULTS; at the end they become the table of docs/faults.md. */

export interface Row {
  scenario: string
  passed: boolean
  acknowledged: number
  lost: number
  ghosts: number
  resurrected: number
  inversions: number
  repeats: number
  worstDelayMs: number
  failures: Record<string, number>
  seconds: number
  /** What the scenario measured besides. */
  measured: string
}

const FILE = 'rows.jsonl'

export function record(row: Row): void {
  const folder = process.env.FAULTS_RESULTS
  if (folder) appendFileSync(join(folder, FILE), `${JSON.stringify(row)}\n`)
}

export function rowOf(scenario: string, report: Report, { failures }: Outcomes): Omit<Row, 'passed' | 'seconds' | 'measured'> {
  const { added, lost, ghosts, resurrected, inversions, repeats, worstDelayMs } = report
  return {
    ...{ scenario, acknowledged: added, lost: lost.length, ghosts: ghosts.length, resurrected: resurrected.length },
    ...{ inversions: inversions.length, repeats, worstDelayMs: Math.round(worstDelayMs), failures },
  }
}

export function readRows(folder: string): Row[] {
  const file = join(folder, FILE)
  if (!existsSync(file)) return []
  const number = ({ scenario }: Row) => Number(/^F(\d+)/.exec(scenario)?.[1] ?? 0)
  return readFileSync(file, 'utf8')
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as Row)
    .sort((a, b) => number(a) - number(b))
}

const HEADER = [
  'scenario',
  'acknowledged',
  'lost',
  'ghosts',
  'resurrected',
  'inversions',
  'repeats',
  'worst delay',
  'failed calls',
  'seconds',
  'measured',
]

export function markdownTable(rows: readonly Row[]): string {
  const failed = (failures: Row['failures']) =>
    Object.entries(failures)
      .map(([code, count]) => `${count} ${code}`)
      .join(', ') || '0'
  const cells = rows.map((row) => [
    `${row.scenario}${row.passed ? '' : ' **failed**'}`,
    ...[row.acknowledged, row.lost, row.ghosts, row.resurrected, row.inversions, row.repeats].map(String),
    ...[`${row.worstDelayMs} ms`, failed(row.failures), row.seconds.toFixed(1), row.measured],
  ])
  return [HEADER, HEADER.map((_, column) => (column === 0 ? '---' : '--:')), ...cells].map((row) => `| ${row.join(' | ')} |`).join('\n')
}

/** Writes docs/faults.md. */
export function writeDocument(rows: readonly Row[], seed: number): void {
  const git = (...args: string[]) => execFileSync('git', args, { encoding: 'utf8' }).trim()
  const machine = `${cpus().length} × ${cpus()[0]!.model}, node ${process.version}`
  writeFileSync(
    'docs/faults.md',
    `# Faults

What happened to messages while the service, Postgres, Redis, the network and FCM failed under load. Written by \`npm run faults\`.

- Seed ${seed}; \`FAULTS_SEED=${seed} npm run faults\` draws the same at random.
- Commit ${git('describe', '--always', '--dirty')}, ${new Date().toISOString().slice(0, 16).replace('T', ' ')} UTC.
- ${machine}. Service, Postgres with fsync, Redis and the load are all on it.

Every row stands for a test of \`test/faults/\` in which a ledger outside of the service keeps each add, delivery and ack, and is then
compared with the rules in \`test/faults/rules.ts\`. \`test/faults/checker.test.ts\` runs the same check on services that are broken on
purpose, and each is caught.

- **acknowledged**: adds that were answered with an id. **lost**: of these, never received. **ghosts**: received and never added there.
  **resurrected**: received after the ack was answered. **inversions**: received in another order than added. **repeats**: received once
  more, after a lost socket, an expired lease or a failover.
- **worst delay**: from the answer of an add to its delivery, where somebody waits for it; an outage counts in full.
- **failed calls**: by the code of the error; \`lost\` is a call whose socket was lost, \`silent\` one without an answer for 2 s. The
  clients keep to 32 calls in flight on a socket (docs/decisions/0021).

${markdownTable(rows)}
`,
  )
}
