import { sumOfFaults } from './ledger.js'
import { median } from './measure.js'
import type { Sample, Samples } from './scenarios/scenario.js'

/** What was measured: of every row its rounds, and what is read from them. */
export interface Results {
  machine: Record<string, string>
  command: string
  takenAt: string
  seconds: number
  rows: Record<string, Sample[]>
}

/** The median of a figure over the rounds; undefined when it was not measured. */
export function figure(results: Results, row: string, read: (sample: Sample) => number | undefined): number | undefined {
  const values = (results.rows[row] ?? []).map(read).filter((value) => value !== undefined)
  return values.length > 0 ? median(values) : undefined
}

/** The median of a ratio that is taken within each round: what the machine did besides is then in both. */
export function ratio(results: Results, row: string, other: string, read: (sample: Sample) => number | undefined): number | undefined {
  const others = results.rows[other] ?? []
  const ratios = (results.rows[row] ?? []).flatMap((sample, round) => {
    const [one, base] = [read(sample), others[round] && read(others[round])]
    return one !== undefined && base ? [one / base] : []
  })
  return ratios.length > 0 ? median(ratios) : undefined
}

export const cpuOfMessage = ({ cpu }: Sample): number | undefined => cpu && cpu.service + cpu.postgres

export function addRound(rows: Record<string, Sample[]>, samples: Samples): void {
  for (const [name, sample] of Object.entries(samples)) (rows[name] ??= []).push(sample)
}

/** In words, one for each row and fault. */
export function faultsOf(rows: Record<string, Sample[]>): string[] {
  return Object.entries(rows).flatMap(([row, samples]) =>
    samples.flatMap(({ faults }) =>
      sumOfFaults(faults) === 0
        ? []
        : Object.entries(faults)
            .filter(([, count]) => count > 0)
            .map(([fault, count]) => `${row}: ${count} messages ${fault}`),
    ),
  )
}

export const round = (value: number | undefined, digits = 0): string =>
  value === undefined || Number.isNaN(value)
    ? '–'
    : value.toLocaleString('en', { minimumFractionDigits: digits, maximumFractionDigits: digits })

const digitsOf = (value: number) => (value >= 100 ? 0 : value >= 10 ? 1 : 2)

/** A line for each row that has throughput. */
export function trafficTable(results: Results): { header: string[]; rows: string[][] } {
  const header = [
    '',
    'messages/s',
    'what',
    'p50 ms',
    'p90',
    'p99',
    'max',
    'CPU µs: service',
    'Postgres',
    'Redis',
    'generator',
    'WAL bytes',
    'peak MiB',
    'refused',
  ]
  const rows = Object.keys(results.rows).flatMap((row) => {
    const samples = results.rows[row]!
    if (samples[0]!.perSecond === undefined) return []
    const of = (read: (sample: Sample) => number | undefined, digits?: number) => {
      const value = figure(results, row, read)
      return round(value, digits ?? (value === undefined ? 0 : digitsOf(value)))
    }
    return Object.keys(samples[0]!.latencies).map((what, i) => [
      i === 0 ? row : '',
      i === 0 ? of(({ perSecond }) => perSecond, 0) : '',
      what,
      ...(['p50', 'p90', 'p99', 'max'] as const).map((share) => of(({ latencies }) => latencies[what]![share])),
      ...(i > 0
        ? ['', '', '', '', '', '', '']
        : [
            ...(['service', 'postgres', 'redis', 'generator'] as const).map((part) => of(({ cpu }) => cpu?.[part], 1)),
            of(({ facts }) => facts.walBytes, 0),
            of(({ peakMiB }) => peakMiB, 0),
            round(samples.reduce((sum, { refused }) => sum + refused, 0)),
          ]),
    ])
  })
  return { header, rows }
}

/** An operation beside its like: see scenarios/depth.ts. */
export function depthTable(results: Results): { header: string[]; rows: string[][] } {
  const rows = Object.keys(results.rows)
    .filter((row) => row.startsWith('depth '))
    .flatMap((row) =>
      ['add', 'take', 'count'].map((operation) => {
        const of = (name: string, digits: number) =>
          round(
            figure(results, row, ({ facts }) => facts[`${operation}${name}`]),
            digits,
          )
        const messages = Number(row.split(' ')[2]).toLocaleString('en')
        const name = `${operation}, ${messages} ${row.includes('here') ? 'in its queue' : 'in other queues'}`
        return [name, of('Us', 0), of('BaseUs', 0), of('Ratio', 2), of('CpuRatio', 2)]
      }),
    )
  return { header: ['one call at a time', 'µs', 'µs with few', 'ratio', 'ratio of CPU'], rows }
}

/** Every other figure: row, name, median. */
export function factsTable(results: Results): { header: string[]; rows: string[][] } {
  const rows = Object.keys(results.rows).flatMap((row) =>
    Object.keys(results.rows[row]![0]!.facts)
      .filter((name) => name !== 'walBytes' && !row.startsWith('depth '))
      .map((name) => {
        const value = figure(results, row, ({ facts }) => facts[name])
        return [row, name, round(value, value === undefined ? 0 : digitsOf(value))]
      }),
  )
  return { header: ['', 'what (the name tells the unit)', 'median'], rows }
}
