/*
 * Question: does addMessage wait for FCM? Its latency and cost with pushes off, with an FCM that answers, and with one that hangs.
 *
 *   npm run bench:push [-- --json]
 *
 * One server process for each, all on one Postgres, their rounds interleaved; every message is for another connection with another token, so
 * each owes a push. What it costs to owe a push (three more rows) is in the ratio to
 * `off`, too. Exit code 1 when the p50 with a hanging FCM is more than 1.5 times that without pushes.
 */
import { randomUUID } from 'node:crypto'
import { ACCEPTED, startFcm } from '../test/helpers/fcm.js'
import { createDatabase, startTestPostgres } from '../test/helpers/postgres.js'
import { startServer } from '../test/helpers/process.js'
import { connect, DID } from '../test/helpers/service.js'
import { cpuOf, machine, median, percentile, printTable } from './measure.js'

const ROUNDS = 5
const MESSAGES = 500
const PER_SECOND = 200
const MAX_RATIO = 1.5
const payload = { ciphertext: 'x'.repeat(1_400) }

const ends: (() => unknown)[] = []
const cleanUp = { teardown: (end: () => unknown) => void ends.unshift(end) }
const server = await startTestPostgres()
cleanUp.teardown(() => server.stop())
const fcm = await startFcm(cleanUp)

async function open(name: string, settings: Record<string, string>, answer: 'hang' | typeof ACCEPTED) {
  const database = await createDatabase(server.url)
  cleanUp.teardown(() => database.drop())
  const service = await startServer(
    { ...settings, DATABASE_URL: database.url, LOG_LEVEL: 'info' },
    { imports: ['./test/helpers/google-redirect.ts'] },
  )
  cleanUp.teardown(() => service.end('SIGTERM'))
  const socket = await connect(service.ws, cleanUp)
  const p50s: number[] = []
  const p99s: number[] = []
  const costs: number[] = []
  const tokens: string[] = []
  return {
    name,
    p50s,
    p99s,
    costs,
    sent: () => tokens.filter((token) => fcm.to(token).length > 0).length,
    async round() {
      const times: number[] = []
      const before = cpuOf(service.pid)
      const started = performance.now()
      await Promise.all(
        Array.from({ length: MESSAGES }, async (_, n) => {
          const due = (n * 1_000) / PER_SECOND
          await new Promise((resolve) => setTimeout(resolve, due))
          const token = randomUUID()
          tokens.push(token)
          fcm.answer(token, () => answer)
          await socket.call('addMessage', {
            ...{ connectionId: randomUUID(), recipientDids: [DID], payload },
            pushNotificationToken: { type: 'fcm', token },
          })
          times.push(performance.now() - started - due)
        }),
      )
      p50s.push(median(times))
      p99s.push(percentile(times, 0.99))
      costs.push((cpuOf(service.pid) - before) / MESSAGES)
    },
  }
}

let isSlow = false
try {
  const rivals = [
    await open('off', {}, ACCEPTED),
    await open('FCM answers', fcm.processSettings, ACCEPTED),
    await open('FCM hangs', fcm.processSettings, 'hang'),
  ]
  for (let round = 0; round <= ROUNDS; round++) {
    for (const rival of rivals) await rival.round()
    if (round === 0) for (const { p50s, p99s, costs } of rivals) for (const list of [p50s, p99s, costs]) list.length = 0 // warm by now
  }
  const [off, , hangs] = rivals as [(typeof rivals)[0], (typeof rivals)[0], (typeof rivals)[0]]
  const rows = rivals.map(({ name, p50s, p99s, costs, sent }) => ({
    pushes: name,
    p50Ms: median(p50s),
    p99Ms: median(p99s),
    serviceUs: Math.round(median(costs)),
    sent: sent(),
    p50ToOff: median(p50s.map((p50, i) => p50 / off.p50s[i]!)),
  }))
  const ratio = median(hangs.p50s.map((p50, i) => p50 / off.p50s[i]!))
  isSlow = ratio > MAX_RATIO
  if (process.argv.includes('--json')) console.log(JSON.stringify({ ...machine(), rows, hangingToOff: ratio }, undefined, 2))
  else {
    console.log(
      Object.values(machine()).join(' · '),
      `\n\naddMessage at ${PER_SECOND}/s, each owing a push; medians of ${ROUNDS} rounds, ms`,
    )
    printTable(
      ['pushes', 'p50', 'p99', 'CPU µs of the service', 'sent', 'p50 / off'],
      rows.map((row) => [row.pushes, row.p50Ms.toFixed(2), row.p99Ms.toFixed(1), row.serviceUs, row.sent, row.p50ToOff.toFixed(2)]),
    )
    console.log(`p50 with a hanging FCM / without pushes: ${ratio.toFixed(2)} (at most ${MAX_RATIO})`)
  }
} finally {
  for (const end of ends) await end()
}
if (isSlow) process.exitCode = 1
