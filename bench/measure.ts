import { execFileSync } from 'node:child_process'
import { readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { cpus } from 'node:os'
import pg from 'pg'

/** What the benchmarks read from the machine. Linux only: CPU and memory come from /proc. */

const TICKS_PER_SECOND = Number(execFileSync('getconf', ['CLK_TCK'], { encoding: 'utf8' }))

interface Stat {
  ppid: number
  ownTicks: number
  /** Of children that have ended and been waited for. */
  childTicks: number
}

function readStat(pid: number): Stat | undefined {
  try {
    const text = readFileSync(`/proc/${pid}/stat`, 'utf8')
    const fields = text
      .slice(text.lastIndexOf(')') + 2)
      .split(' ')
      .map(Number) // from the third on: state, ppid, ...
    return { ppid: fields[1]!, ownTicks: fields[11]! + fields[12]!, childTicks: fields[13]! + fields[14]! }
  } catch {
    return undefined // ended
  }
}

/** CPU time (µs) that a process has used. */
export function cpuOf(...pids: number[]): number {
  return (pids.reduce((sum, pid) => sum + (readStat(pid)?.ownTicks ?? 0), 0) * 1e6) / TICKS_PER_SECOND
}

/** CPU time (µs) of a process and all its children, also those that have ended: a Postgres has one for each connection. */
export function cpuOfFamily(parent: number): number {
  const { ownTicks = 0, childTicks = 0 } = readStat(parent) ?? {}
  let ticks = ownTicks + childTicks
  for (const name of readdirSync('/proc')) {
    const stat = /^\d+$/.test(name) ? readStat(Number(name)) : undefined
    if (stat?.ppid === parent) ticks += stat.ownTicks
  }
  return (ticks * 1e6) / TICKS_PER_SECOND
}

/** The process that all connections of this Postgres are children of. It must run on this machine. */
export async function postmasterOf(client: pg.Client): Promise<number> {
  const { rows } = await client.query<{ pid: number }>('SELECT pg_backend_pid() AS pid')
  const stat = readStat(rows[0]!.pid)
  if (!stat)
    throw new Error('This benchmark reads the CPU time of Postgres from /proc: unset TEST_DATABASE_URL, or point it to this machine.')
  return stat.ppid
}

/** Resident memory in bytes: now, or the most since the process began or `forgetPeak`. */
export function memoryOf(pid: number, which: 'VmRSS' | 'VmHWM' = 'VmRSS'): number {
  return Number(new RegExp(`${which}:\\s+(\\d+) kB`).exec(readFileSync(`/proc/${pid}/status`, 'utf8'))![1]) * 1024
}

export function forgetPeak(pid: number): void {
  writeFileSync(`/proc/${pid}/clear_refs`, '5')
}

export function percentile(values: readonly number[], share: number): number {
  const sorted = [...values].sort((a, b) => a - b)
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? NaN
}

/** Milliseconds. */
export interface Latency {
  p50: number
  p90: number
  p99: number
  max: number
}

export function latencyOf(times: readonly number[]): Latency {
  const sorted = Float64Array.from(times).sort()
  const at = (share: number) => sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? NaN
  return { p50: at(0.5), p90: at(0.9), p99: at(0.99), max: at(1) }
}

export const median = (values: readonly number[]): number => percentile(values, 0.5)

export function machine(): Record<string, string> {
  const commit = execFileSync('git', ['describe', '--always', '--dirty'], { encoding: 'utf8' }).trim()
  return { machine: `${cpus().length} × ${cpus()[0]!.model}`, node: process.version, commit }
}

/** Names left, numbers right. */
export function printTable(header: string[], rows: (string | number)[][]): void {
  const cells = [header, ...rows.map((row) => row.map(String))]
  const widths = header.map((_, column) => Math.max(...cells.map((row) => row[column]!.length)))
  for (const row of cells)
    console.log(row.map((cell, column) => (column ? cell.padStart(widths[column]!) : cell.padEnd(widths[0]!))).join('  '))
  console.log()
}
