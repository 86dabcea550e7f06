import pg from 'pg'

export interface Statement {
  text: string
  values: unknown[]
}

/**
 * Tells of each statement with values on its way to Postgres, whoever sends it and by whatever connection of this process. What pg holds of it is
 * told too. @returns what ends it
 */
export function watchStatements(onSent: (statement: Statement, held: object) => void): () => void {
  const prototype = pg.Client.prototype as unknown as { query(...args: unknown[]): unknown }
  const { query } = prototype
  prototype.query = function (this: unknown, config: string | Statement, values: unknown, ...rest: unknown[]) {
    if (typeof config !== 'string')
      onSent({ text: config.text, values: [...(Array.isArray(values) ? values : (config.values ?? []))] }, config)
    return query.call(this, config, values, ...rest)
  }
  return () => (prototype.query = query)
}
