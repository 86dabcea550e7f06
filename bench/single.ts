import pg from 'pg'
import { openClient, openLoop } from './client.js'
import { latencyOf, type Latency } from './measure.js'
import { fillerOf } from './traffic.js'

/** One thing after the other. Runs in the generator's process. */

/** The commit of one row as large as a message: what the disk and Postgres take without us. One at a time, at this rate. */
export async function commits({
  databaseUrl,
  perSecond,
  messages,
  payloadBytes,
}: {
  databaseUrl: string
  perSecond: number
  messages: number
  payloadBytes: number
}): Promise<Latency> {
  const client = new pg.Client(databaseUrl)
  await client.connect()
  await client.query('CREATE TABLE IF NOT EXISTS bench_commits (payload text)')
  const insert = { name: 'insert', text: 'INSERT INTO bench_commits VALUES ($1)', values: [fillerOf(payloadBytes)] }
  const times: number[] = []
  let last = Promise.resolve()
  await openLoop(perSecond, messages, () => {
    last = last.then(async () => {
      const sentAt = performance.now()
      await client.query(insert)
      times.push(performance.now() - sentAt)
    })
  })
  await last
  await client.query('TRUNCATE bench_commits')
  await client.end()
  return latencyOf(times)
}

/** One call after the other. Adds must be answered with an id each, everything else always with the same. */
export async function inTurn({ url, method, params, calls }: { url: string; method: string; params: object; calls: number }): Promise<{
  us: number
  answer: unknown
}> {
  const client = await openClient(url)
  const answers = new Set<string>()
  const times: number[] = []
  let timeouts = 0
  for (let i = 0; i < calls; i++) {
    const sentAt = performance.now()
    await new Promise<void>((resolve, reject) =>
      client.callText(method, params, (result, error) => {
        times.push((performance.now() - sentAt) * 1_000) // a timeout is a time like any other
        if (!error) answers.add(JSON.stringify(result))
        else if (error.data.retryable) timeouts++
        else reject(new Error(`${method}: ${error.message}`))
        resolve()
      }),
    )
  }
  await client.close()
  if (timeouts === calls) throw new Error(`${method} was never answered`)
  if (answers.size !== (method === 'addMessage' ? calls - timeouts : 1))
    throw new Error(`${method} had ${answers.size} answers to ${calls} calls`)
  return { us: latencyOf(times).p50, answer: JSON.parse([...answers].at(-1)!) }
}
