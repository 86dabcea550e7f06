import t from 'tap'
import { growth, liveThroughFaults, SOAK_BOUNDS, type Sample } from './random-faults.js'
import { onlyFull, scenario, withoutRedis } from './scenario.js'

const MINUTES = 2

scenario('F34: faults at random', { skip: onlyFull || withoutRedis, ...SOAK_BOUNDS }, async (t, world) => {
  const { samples, faults } = await liveThroughFaults(t, world, { minutes: MINUTES, random: world.random, say: (text) => t.comment(text) })
  const { complaints, peaks } = growth(samples)
  t.same(complaints, [], 'memory, files and table stay flat')
  world.measured(`${faults} faults; ${peaks}`)
})

t.test('what grows is told from what only filled', async (t) => {
  const samples = (mib: (n: number) => number): Sample[] =>
    Array.from({ length: 90 }, (_, n) => ({ second: n, mib: [mib(n), undefined], files: [60, 60], tableMib: 40 }))
  const fills = (n: number) => 200 - 100 / (n + 1)
  t.same(growth(samples(fills)).complaints, [])
  t.match(growth(samples((n) => 100 + 2 * n)).complaints, [/^resident memory/])
  t.same(growth(samples((n) => (n % 20 < 5 ? 90 : 200))).complaints, [], 'a process that is new again')
})
