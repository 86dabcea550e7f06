import pg, { type Connection, type Submittable } from 'pg'
import type { Statement } from './query.js'

type Value = string | Buffer | null
type Parser = (text: string) => unknown

// As pg-cursor and pg-query-stream, the other two that speak pg's protocol by themselves, have it.
const { prepareValue } = (pg as unknown as { utils: { prepareValue(value: unknown): Value } }).utils

/** Of each connection, by the names of its statements: how their rows are read. */
const described = new WeakMap<Connection, Map<string, readonly Parser[]>>()

/**
 * A statement on its way. pg's own Query asks for a description of the rows each time, and gets and reads it: a tenth of what a lone add takes
 * in this process, and 4 % of its CPU at full load (docs/decisions/0008). This one asks once per connection.
 *
 * pg keeps it longer than its answer: it holds nothing by then.
 */
export class Prepared<Row extends unknown[]> implements Submittable {
  readonly name: string
  readonly text: string
  private rows: Row[] = []
  private parsers: readonly Parser[] | undefined
  private known: Map<string, readonly Parser[]> | undefined

  constructor(
    { name, text }: Statement,
    private values: unknown[],
    /** pg puts its own before it, for `query_timeout`. */
    public callback: (error: Error | null, rows: Row[]) => void,
  ) {
    this.name = name
    this.text = text
  }

  /** @returns why nothing was sent, if so */
  submit(connection: Connection): Error | undefined {
    let values
    try {
      values = this.values.map(prepareValue)
    } catch (error) {
      return error as Error
    }
    let known = described.get(connection)
    if (!known) described.set(connection, (known = new Map<string, readonly Parser[]>()))
    this.known = known
    this.parsers = known.get(this.name)
    const isNew = this.parsers === undefined
    connection.stream.cork()
    if (isNew) connection.parse({ name: this.name, text: this.text, types: [] }, true)
    connection.bind({ statement: this.name, values }, true)
    if (isNew) connection.describe({ type: 'P' }, true)
    connection.execute({}, true)
    connection.sync()
    connection.stream.uncork()
    return undefined
  }

  handleRowDescription({ fields }: { fields: { dataTypeID: number }[] }): void {
    this.parsers = fields.map(({ dataTypeID }) => pg.types.getTypeParser(dataTypeID) as Parser)
  }

  handleDataRow({ fields }: { fields: (string | null)[] }): void {
    const { parsers } = this
    this.rows.push(fields.map((text, i) => (text === null ? null : parsers![i]!(text))) as Row)
  }

  handleCommandComplete(): void {
    this.known?.set(this.name, this.parsers ?? [])
  }

  handleReadyForQuery(): void {
    this.end(null)
  }

  handleError(error: Error): void {
    this.end(error)
  }

  private end(error: Error | null): void {
    const { rows } = this
    this.values = []
    this.rows = []
    this.callback(error, rows)
  }
}
