import * as crowd from './crowd.js'
import { closeMailboxes, day, openMailboxes } from './live.js'
import { commits, inTurn } from './single.js'
import { add, drain, ping } from './traffic.js'

/** The generator's process, so that its CPU is not the service's. Does the jobs that bench/stand.ts sends. */

const jobs = { add, commits, day, drain, inTurn, ping, openMailboxes, closeMailboxes, ...crowd }
export type Jobs = typeof jobs

export interface Order {
  name: keyof Jobs
  options: never
}

process.on('message', ({ name, options }: Order) => {
  const job = jobs[name] as (options: never) => Promise<unknown>
  job(options).then(
    (result) => process.send!({ result }),
    (error: Error) => process.send!({ error: error.stack }),
  )
})
// What is thrown while an answer is read is a wrong answer. Whoever waits for the job hears of it.
process.on('uncaughtException', (error) => process.send!({ error: error.stack }))
process.on('disconnect', () => process.exit())
process.send!({ result: 'ready' })
