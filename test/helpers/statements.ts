import pg from 'pg'

export interface Statement {
  text: string
  /** pg's own list: what becomes of it is seen. */
  values: unknown[]
  result?: pg.QueryResult
}

/** Tells of each statement with values on its way to Postgres, whoever sends it and by whatever connection of this process. @returns what ends it */
export function watchStatements(onSent: (statement: Statement) => void): () => void {
  const prototype = pg.Client.prototype as unknown as { query(...args: unknown[]): unknown }
  const { query } = prototype
  prototype.query = function (this: unknown, config: string | { text: string; values?: unknown[] }, ...rest: unknown[]) {
    if (typeof config === 'string') return query.call(this, config, ...rest)
    const statement: Statement = { text: config.text, values: (rest.find(Array.isArray) as unknown[] | undefined) ?? config.values ?? [] }
    onSent(statement)
    const done = (error: Error | null, result: pg.QueryResult) => {
      statement.result = result
      ;(rest.at(-1) as typeof done)(error, result)
    }
    return query.call(this, config, ...rest.slice(0, -1), ...(typeof rest.at(-1) === 'function' ? [done] : rest.slice(-1)))
  }
  return () => (prototype.query = query)
}
