import type { Pool, PoolClient } from 'pg'
import { Prepared } from './prepared.js'
import type { Query } from './query.js'

/*
 * Statements that follow each other go down the same connections. To be lent one by pg's pool and to give it back is two ticks, four timers,
 * and listeners added and removed: 15 of the 160 µs that a lone add takes in this process. docs/decisions/0008
 */

/** As many batches of adds as are under way at once. */
const MOST_KEPT = 2
/** Not used for so long, or twice that, it goes back to the pool. No longer does whoever asks the pool, or ends it, wait for it; that is when all others are busy. */
const KEEP_MS = 100

interface Connection {
  client: PoolClient
  wasUsed: boolean
  onError(error: Error): void
}

/** @returns a function that runs a statement on any connection of the pool; one that failed gives its connection up, as `pool.query` does */
export function createRun(pool: Pool): Query {
  const most = Math.min(MOST_KEPT, pool.options.max - 1)
  let kept: Connection[] = []
  let isWatching = false

  return (statement, values) =>
    new Promise((resolve, reject) => {
      const connection = kept.pop()
      if (connection) send(connection)
      else pool.connect((error, client) => (client ? send(borrowed(client)) : reject(error!)))

      function send(connection: Connection): void {
        const prepared = new Prepared<never>(statement, values, (error, rows) => {
          giveBack(connection, error ?? undefined)
          if (error) reject(error)
          else resolve(rows)
        })
        connection.client.query(prepared)
      }
    })

  function borrowed(client: PoolClient): Connection {
    const connection = {
      client,
      wasUsed: false,
      onError(error: Error) {
        // While it is in use its statement fails, and gives it up.
        if (!kept.includes(connection)) return
        kept = kept.filter((other) => other !== connection)
        release(connection, error)
        pool.emit('error', error, client) // as the pool does of one that it has
      },
    }
    client.on('error', connection.onError)
    return connection
  }

  function giveBack(connection: Connection, error?: Error): void {
    if (error || kept.length >= most || pool.waitingCount > 0 || pool.ending) return release(connection, error)
    connection.wasUsed = true
    kept.push(connection)
    if (!isWatching) watch()
  }

  function watch(): void {
    isWatching = true
    setTimeout(() => {
      const unused = kept.filter(({ wasUsed }) => !wasUsed)
      kept = kept.filter(({ wasUsed }) => wasUsed)
      for (const connection of kept) connection.wasUsed = false
      for (const connection of unused) release(connection)
      isWatching = false
      if (kept.length > 0) watch()
    }, KEEP_MS).unref()
  }

  function release({ client, onError }: Connection, error?: Error): void {
    client.off('error', onError)
    client.release(error)
  }
}
