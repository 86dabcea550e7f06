/*
 * How far from the ceiling is the service, and where does it stand against issue 5?
 *
 *   npm run bench [-- [--smoke] [--rounds=n] [--json] [scenario ...]]
 *
 * Without names all scenarios but `buses`. Exit code 1 when an answer was wrong: a message lost, repeated, out of order, altered, or one that
 * nobody added. A missed goal is told and does not fail. The result is kept in bench/results/, for bench/report.ts.
 */
import { mkdirSync, writeFileSync } from 'node:fs'
import { goalsTable } from './goals.js'
import { machine, printTable } from './measure.js'
import { addRound, depthTable, factsTable, faultsOf, trafficTable, type Results } from './results.js'
import { groups } from './scenarios.js'
import { FULL, SMOKE, WARM, type Group } from './scenarios/scenario.js'
import { build, openStand } from './stand.js'

const options = process.argv.slice(2).filter((argument) => argument.startsWith('--'))
const wanted = process.argv.slice(2).filter((argument) => !argument.startsWith('--'))
const names = groups.flatMap((group) => group.names)
const unknown = wanted.filter((name) => !names.includes(name))
if (unknown.length > 0) throw new Error(`There is no scenario ${unknown.join(', ')}. There are: ${names.join(', ')}.`)

const isSmoke = options.includes('--smoke')
const size = isSmoke ? SMOKE : FULL
const asked = options.find((option) => option.startsWith('--rounds='))?.split('=')[1]
const startedAt = performance.now()
const results: Results = {
  machine: machine(),
  command: `npm run bench${process.argv.length > 2 ? ` -- ${process.argv.slice(2).join(' ')}` : ''}`,
  takenAt: new Date().toISOString(),
  seconds: 0,
  rows: {},
}

const file = `bench/results/${isSmoke ? 'smoke' : wanted.length > 0 ? wanted.join('-') : 'full'}.json`
mkdirSync('bench/results', { recursive: true })
const failures: string[] = []

build()
const stand = await openStand()
try {
  for (const group of groups) {
    const isWanted = (name: string) => (wanted.length === 0 ? !group.isExtra : wanted.includes(name))
    if (!group.names.some(isWanted)) continue
    // What fails ends its group, and the run is failed; the others are still measured.
    await measureGroup(group, isWanted).catch((error: Error) => failures.push(`${group.names.join(', ')}: ${error.stack}`))
    results.seconds = (performance.now() - startedAt) / 1_000
    writeFileSync(file, `${JSON.stringify(results, undefined, 1)}\n`)
  }
} finally {
  await stand.close()
}

function roundsOf({ rounds }: Group): number {
  return Number(asked ?? (isSmoke ? undefined : rounds) ?? size.rounds)
}

async function measureGroup(group: Group, isWanted: (name: string) => boolean): Promise<void> {
  const { scenarios, close } = await group.open(stand)
  const picked = scenarios.filter((scenario) => scenario.names.some(isWanted))
  try {
    // Twice: what the last scenario does makes V8 compile anew what the first one ran.
    for (const scenario of !isSmoke && group.warms ? [...picked, ...picked] : []) await scenario.run(WARM)
    const rounds = roundsOf(group)
    for (let round = 0; round < rounds; round++) {
      for (const scenario of picked) {
        if (scenario.once && round > 0) continue
        const began = performance.now()
        addRound(results.rows, await scenario.run(size))
        const seconds = ((performance.now() - began) / 1_000).toFixed(1)
        console.error(`${scenario.names.join(' + ')}, round ${round + 1} of ${scenario.once ? 1 : rounds}: ${seconds} s`)
      }
    }
  } finally {
    await close()
  }
}

if (options.includes('--json')) console.log(JSON.stringify(results))
else {
  console.log(`\n${Object.values(results.machine).join(' · ')} · medians of the rounds · ${results.seconds.toFixed(0)} s · ${file}\n`)
  for (const table of [trafficTable, depthTable, factsTable, goalsTable]) {
    const { header, rows } = table(results)
    if (rows.length > 0) printTable(header, rows)
  }
}

failures.push(...faultsOf(results.rows))
for (const failure of failures) console.error(failure)
if (failures.length > 0) process.exitCode = 1
