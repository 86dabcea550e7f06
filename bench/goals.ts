import { cpuOfMessage, figure, ratio, type Results } from './results.js'

/** What issue 5 asks for, point by point. */
export interface Goal {
  point: string
  what: string
  /** At least, or at most. */
  bound: ['≥' | '≤', number]
  measured: (results: Results) => number | undefined
}

const MIB_PER_MB = 1e6 / 2 ** 20
const KIB_PER_KB = 1_000 / 1_024
const fact = (row: string, name: string) => (results: Results) => figure(results, row, ({ facts }) => facts[name])

export const goals: Goal[] = [
  {
    point: '1',
    what: 'add: throughput / floor',
    bound: ['≥', 0.5],
    measured: (r) => ratio(r, 'add', 'floor', ({ perSecond }) => perSecond),
  },
  { point: '1', what: 'add: CPU of service + Postgres / floor', bound: ['≤', 2], measured: (r) => addToFloor(r) },
  { point: '2', what: 'drain: CPU / add', bound: ['≤', 1], measured: (r) => ratio(r, 'drain', 'add', cpuOfMessage) },
  { point: '2', what: 'day, full load: CPU / add', bound: ['≤', 3], measured: (r) => ratio(r, 'day', 'add', cpuOfMessage) },
  { point: '2', what: 'day at 500/s: CPU / add at 500/s', bound: ['≤', 3], measured: (r) => ratio(r, 'day rate', 'rate', cpuOfMessage) },
  {
    point: '3',
    what: 'add at 500/s: p50 / commit of the disk',
    bound: ['≤', 2],
    measured: (r) => figure(r, 'rate', (s) => s.latencies.add!.p50 / s.facts.commitP50Ms!),
  },
  {
    point: '3',
    what: 'add at 500/s: p99 / p50',
    bound: ['≤', 10],
    measured: (r) => figure(r, 'rate', (s) => s.latencies.add!.p99 / s.latencies.add!.p50),
  },
  { point: '3', what: 'messagesReceived at 500/s: p99 / p99 of add', bound: ['≤', 1.5], measured: (r) => deliveredToAdded(r) },
  ...(['add', 'take', 'count'] as const).flatMap((operation): Goal[] => [
    {
      point: '4',
      what: `${operation}: 1 M messages elsewhere / none`,
      bound: ['≤', 1.5],
      measured: fact('depth elsewhere 1000000', `${operation}Ratio`),
    },
    {
      point: '4',
      what: `${operation}: a queue of 100,000 / of 10`,
      bound: ['≤', 1.5],
      measured: fact('depth here 100000', `${operation}Ratio`),
    },
  ]),
  {
    point: '5',
    what: 'idle: KB for each of 10,000 sockets with a session',
    bound: ['≤', 20],
    measured: (r) => times(fact('idle', 'kibEach')(r), 1 / KIB_PER_KB),
  },
  {
    point: '5',
    // Heap and buffers after a full collection: 2,000 sessions are 3 MB, and the resident memory of a process that has just grown or given back
    // its young generation differs by ten times as much from one run to the next. It is among the other figures.
    what: 'idle: KB of heap for each of 2,000 sessions of a socket',
    bound: ['≤', 2],
    measured: (r) => times(fact('idle, one socket', 'heapKibEach')(r), 1 / KIB_PER_KB),
  },
  {
    point: '5',
    what: 'storm: seconds until 10,000 are back and live',
    bound: ['≤', 30],
    measured: (r) => times(fact('storm', 'backMs')(r), 1 / 1_000),
  },
  { point: '6', what: 'big: peak MB while 100 × 1 MiB pass', bound: ['≤', 256], measured: (r) => bigPeak(r) },
  { point: '6', what: 'big: longest stall, ms', bound: ['≤', 100], measured: fact('big 1 MiB add', 'stallMs') },
]

function addToFloor(results: Results): number | undefined {
  const floor = results.rows.floor ?? []
  // Postgres idles at the floor; what it does there is not the floor's.
  const rounds = {
    ...results,
    rows: { ...results.rows, floor: floor.map((sample) => ({ ...sample, cpu: { ...sample.cpu!, postgres: 0 } })) },
  }
  return ratio(rounds, 'add', 'floor', cpuOfMessage)
}

function deliveredToAdded(results: Results): number | undefined {
  const added = results.rows.rate ?? []
  const rows = { delivered: results.rows['day rate'] ?? [], added }
  return ratio({ ...results, rows }, 'delivered', 'added', ({ latencies }) => (latencies.messagesReceived ?? latencies.add)?.p99)
}

function bigPeak(results: Results): number | undefined {
  const peaks = ['add', 'drain', 'day'].map((part) => figure(results, `big 1 MiB ${part}`, ({ peakMiB }) => peakMiB))
  return peaks.includes(undefined) ? undefined : Math.max(...peaks.map(Number)) / MIB_PER_MB
}

const times = (value: number | undefined, factor: number) => (value === undefined ? undefined : value * factor)

export function isMet({ bound: [direction, limit] }: Goal, measured: number): boolean {
  return direction === '≥' ? measured >= limit : measured <= limit
}

export function goalsTable(results: Results): { header: string[]; rows: string[][] } {
  const rows = goals.map((goal) => {
    const measured = goal.measured(results)
    const verdict = measured === undefined ? 'not measured' : isMet(goal, measured) ? 'met' : 'missed'
    return [
      goal.what,
      goal.point,
      `${goal.bound[0]} ${goal.bound[1]}`,
      measured === undefined ? '–' : measured.toFixed(measured >= 10 ? 1 : 2),
      verdict,
    ]
  })
  return { header: ['goal', 'of', 'bound', 'measured', ''], rows }
}
