/*
 * Writes docs/benchmarks.md and its charts from what `npm run bench` and `npm run bench:profile` left in bench/results/.
 *
 *   npm run bench:report [-- name]     of bench/results/<name>.json, `full` when absent
 */
import { mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { lineChart, type Series } from './chart.js'
import { goalsTable } from './goals.js'
import type { Profile } from './profile.js'
import { depthTable, factsTable, figure, round, trafficTable, type Results } from './results.js'
import { FULL } from './scenarios/scenario.js'

const results = JSON.parse(readFileSync(`bench/results/${process.argv[2] ?? 'full'}.json`, 'utf8')) as Results
const profile = JSON.parse(readFileSync('bench/results/profile.json', 'utf8')) as Profile

/** What the parts of a profile do. A share over 5 % whose part is not here stops the report. */
const EXPLANATIONS: [RegExp, string][] = [
  [
    /^socket writes/,
    'the system calls that send: answers and deliveries to mediators, statements to Postgres. The kernel copies the bytes within them.',
  ],
  [/^native code/, 'time outside any JavaScript: reading from sockets, polling, V8 compiling.'],
  [/^garbage collection/, 'what frames, parameters and rows leave behind.'],
  [/^JSON$/, 'parsing frames, and making answers.'],
  [/^node: sockets/, 'streams and sockets of Node around each read and write.'],
  [/^node: the rest/, 'buffers, timers, ticks and promises of Node.'],
  [/^builtins/, 'strings, maps, arrays and buffers, called from all the other parts.'],
  [/^(pg|pg-protocol|pg-pool|postgres)$/, 'the driver: writing parameters, reading rows.'],
  [/^ws$/, 'reading frames: length, unmasking, assembling.'],
  [/^bufferutil$/, 'unmasking in C.'],
  [/^ioredis|^@ioredis|^redis/, 'hints to other instances, and what comes of them.'],
  [/^pino|^sonic-boom|^fast-redact/, 'the log.'],
  [/^@sinclair/, 'validation of parameters.'],
  [/^ours: src\/(json|jsonrpc)/, 'frames: depth, parsing, dispatching, answering.'],
  [/^ours: src\/(calls|contract|pickup|quota|arrival-order)/, 'a call: its checks, its deadline, its place in the order, its quota.'],
  [/^ours: src\/(live-sessions|delivery)/, 'live sessions: who is owner, what is in flight.'],
  [/^ours: plugins\/storage/, 'batches of statements, and rows made into messages.'],
  [/^ours: plugins\/pubsub/, 'hints.'],
  [/^ours: (routes|plugins\/websocket)/, 'frames from and to sockets.'],
]

const markdown = ({ header, rows }: { header: string[]; rows: string[][] }) =>
  [header, header.map((_, i) => (i === 0 ? '---' : '---:')), ...rows].map((cells) => `| ${cells.join(' | ')} |`).join('\n')

const latencySeries = (share: 'p50' | 'p90' | 'p99'): Series => ({
  name: share,
  points: Object.keys(results.rows)
    .filter((row) => row.startsWith('load '))
    .map((row) => [Number(row.slice(5)), figure(results, row, ({ latencies }) => latencies.add![share])!] as const),
})

const depthSeries = (where: 'elsewhere' | 'here'): Series[] =>
  (['add', 'take', 'count'] as const).map((operation) => ({
    name: operation,
    points: Object.keys(results.rows)
      .filter((row) => row.startsWith(`depth ${where} `))
      .map((row) => [Number(row.split(' ')[2]), figure(results, row, ({ facts }) => facts[`${operation}Ratio`])!] as const)
      .filter(([messages]) => messages > 0)
      .sort((a, b) => a[0] - b[0]),
  }))

const percent = (share: number) => `${(share * 100).toFixed(0)} %`

function explain(what: string, share: number): string {
  const explanation = EXPLANATIONS.find(([pattern]) => pattern.test(what))?.[1] ?? ''
  if (share > 0.05 && explanation === '')
    throw new Error(`${what} has ${percent(share)} of the CPU, and bench/report.ts does not explain it.`)
  return explanation
}

mkdirSync('docs/benchmarks', { recursive: true })
const charts: Record<string, Parameters<typeof lineChart>[0]> = {
  'latency-against-load': {
    title: 'add: latency against load (open loop)',
    x: 'adds per second',
    y: 'ms from the moment it was due',
    series: [latencySeries('p50'), latencySeries('p90'), latencySeries('p99')],
  },
  'cost-against-table': {
    title: 'Time of a call against messages in other queues',
    x: 'messages in the table',
    y: 'times as long as in an empty table',
    series: depthSeries('elsewhere'),
  },
  'cost-against-queue': {
    title: 'Time of a call against messages in its own queue',
    x: 'messages in the queue',
    y: 'times as long as in a queue of 10',
    series: depthSeries('here'),
  },
}
/** Of a scenario that was not run there is no chart. */
function chart(name: keyof typeof charts): string {
  const file = `docs/benchmarks/${name}.svg`
  rmSync(file, { force: true })
  if (charts[name]!.series.every(({ points }) => points.length === 0)) return 'Not measured in this run.'
  writeFileSync(file, lineChart(charts[name]!))
  return `![${charts[name]!.title}](benchmarks/${name}.svg)`
}

const profileSections = profile.stages.map(({ stage, busyShare, categories, functions }) => {
  const parts = categories.map(({ what, share }) => [what, percent(share), explain(what, share)])
  const hot = functions.filter(({ share }, i) => share > 0.05 || i < 10).map(({ what, share }) => [`\`${what}\``, percent(share)])
  return `### ${stage}

Busy ${percent(busyShare)} of the time.

${markdown({ header: ['part', 'of the busy time', 'what it does'], rows: parts })}

${markdown({ header: ['function, its own time', ''], rows: hot })}`
})

const others = new Map<number, string[]>()
for (const [row, { length }] of Object.entries(results.rows))
  if (length !== FULL.rounds && !row.startsWith('depth ')) others.set(length, [...(others.get(length) ?? []), row])
const otherRounds = [...others].map(([rounds, rows]) => `, but of ${rounds} for ${rows.join(', ')}`).join('')

writeFileSync(
  'docs/benchmarks.md',
  `# Benchmarks

<!-- Written by \`npm run bench:report\` from bench/results/. Do not edit. -->

How far is the service from the ceiling of its transport, what does a message cost, and does that stay so when much waits? Measured by
\`${results.command}\` on ${results.machine.machine}, Node ${results.machine.node}, commit ${results.machine.commit}, ${results.takenAt.slice(0, 10)}, in ${round(results.seconds)} s.

The same cores carry the load generator, Postgres (fsync on), Redis, and other people's work: **trust the ratios**, which are taken within each
round, not the absolutes. Every figure is the median of ${FULL.rounds} rounds${otherRounds}. Every answer was checked: a message that is lost, repeated, out of order,
altered, or that nobody added, fails the run. Scenarios and their questions: [bench/scenarios](../bench/scenarios).

## Goals

${markdown(goalsTable(results))}

CPU is that of the service and Postgres for each message. \`floor\` is a bare @fastify/websocket handler that parses the same addMessage frames and answers.
\`bare\` is the same with a row in the same table for each frame, stored as the service does it (bench/bare.ts): the least that a durable add costs.
So few rounds on a machine that others use too do not decide a narrow goal; what more rounds and other days say is in
[decisions/0025](decisions/0025-how-sure-the-goals-of-speed-are.md).

## Latency against load

${chart('latency-against-load')}

Open loop: the next add leaves when it is due, however slow the answers are, and its latency counts from then.

## Cost against depth

${chart('cost-against-table')}

${chart('cost-against-queue')}

${markdown(depthTable(results))}

Each beside its like in the same moments: the full table beside an empty one, the deep queue beside one of 10.

## Traffic

A message has ${round(1_500)} bytes; 8 sockets, 32 calls in flight on each, except where the name tells a rate (open loop).

${markdown(trafficTable(results))}

## The other figures

${markdown(factsTable(results))}

## Where the CPU goes

\`npm run bench:profile\`, commit ${profile.machine.commit}: the service under full load, shares of at least 1 % of its busy time.

${profileSections.join('\n\n')}
`,
)
console.log('docs/benchmarks.md is written')
