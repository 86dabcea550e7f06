import pg, { type Pool } from 'pg'
import { CallError } from '../../src/errors.js'
import { createRun } from './connections.js'

/** A named statement: parsed, planned and described once per connection. */
export interface Statement {
  name: string
  text: string
}

export type Query = <Row extends unknown[]>(statement: Statement, values: unknown[]) => Promise<Row[]>

/** @returns a function that runs a statement on any connection of the pool; rows are arrays, in the order of the columns. */
export function createQuery(pool: Pool): Query {
  const run = createRun(pool)
  return async <Row extends unknown[]>(statement: Statement, values: unknown[]) => {
    try {
      return await run<Row>(statement, values)
    } catch (error) {
      throw storeError(error)
    }
  }
}

/** Waits for a query of Drizzle, which wraps what the driver threw. */
export async function attempt<T>(query: PromiseLike<T>): Promise<T> {
  try {
    return await query
  } catch (error) {
    throw storeError((error as Error).cause ?? error)
  }
}

const TIMEOUTS = new Set([
  '57014', // query_canceled: statement_timeout
  '55P03', // lock_not_available
])
const UNAVAILABLE = new Set([
  '53300', // too_many_connections
  '57P01', // admin_shutdown
  '57P02', // crash_shutdown
  '57P03', // cannot_connect_now
  '25006', // read_only_sql_transaction: connected to a standby
])

/** What a caller is told about a failure of Postgres. A refused value (classes 22, 23, 54) is left as it is. */
export function storeError(error: unknown): unknown {
  const code = (error as { code?: unknown }).code
  const state = typeof code === 'string' ? code : ''
  if (TIMEOUTS.has(state) || /timeout/i.test((error as Error).message)) {
    return new CallError('timeout', 'The database did not answer in time; the call may have taken effect.', {}, error)
  }
  if (UNAVAILABLE.has(state) || state.startsWith('08') || !(error instanceof pg.DatabaseError) || /^(40|53|58)/.test(state)) {
    return new CallError('unavailable', 'The database cannot be reached; the call may have taken effect.', {}, error)
  }
  return error
}

/** SQLSTATE classes in which the statement was refused because of a value and not because of the server. */
export function isRefusedValue(error: unknown): boolean {
  const code = (error as { code?: unknown }).code
  return typeof code === 'string' && /^(22|23|54)[0-9A-Z]{3}$/.test(code)
}
