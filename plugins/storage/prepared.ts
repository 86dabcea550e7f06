import pg, { type Connection, type Submittable } from 'pg'
import { bindMessage, type Value } from './bind-message.js'
import type { Statement } from './query.js'

type Parser = (text: string) => unknown
type Done<Row> = (error: Error | null, rows: Row[]) => void

// As pg-cursor and pg-query-stream, the other two that speak pg's protocol by themselves, have it.
const { prepareValue } = (pg as unknown as { utils: { prepareValue(value: unknown): Value } }).utils

const INT8: number = pg.types.builtins.INT8
/** pg leaves an int8 as it is too, after a look at its digits. */
const asText: Parser = (text) => text

/** Of each connection, by the texts of its statements: how their rows are read. By the text, so that one name for two is refused by Postgres. */
const described = new WeakMap<Connection, Map<string, readonly Parser[]>>()

/**
 * A statement on its way. pg's own Query asks for a description of the rows each time, waits for it and reads it: with it a lone add took 0.70 ms, and
 * takes 0.63 (docs/decisions/0008). This one asks once per connection.
 *
 * It outlives its answer, and by then it holds nothing. For `query_timeout` pg assigns a function to it, V8 gives a function that is assigned to a
 * property to the old generation at once, and what that leads to stays until the next full collection. Those came when 64 MiB of parameters
 * lay about, every 0.5 to 1.8 s under load.
 */
export class Prepared<Row extends unknown[]> implements Submittable {
  readonly name: string
  readonly text: string
  private rows: Row[] = []
  private parsers: readonly Parser[] | undefined
  /** Where to keep the parsers, when they are new. */
  private known: Map<string, readonly Parser[]> | undefined

  constructor(
    { name, text }: Statement,
    private values: unknown[],
    private done: Done<Row> | undefined,
  ) {
    this.name = name
    this.text = text
  }

  callback: Done<Row> = (error, rows) => {
    const { done } = this
    this.done = undefined
    done?.(error, rows)
  }

  /** @returns why it could not be sent, if so: then the connection is of no use */
  submit(connection: Connection): Error | undefined {
    let known = described.get(connection)
    if (!known) described.set(connection, (known = new Map<string, readonly Parser[]>()))
    this.parsers = known.get(this.text)
    const isNew = this.parsers === undefined
    if (isNew) this.known = known
    const { stream } = connection
    stream.cork()
    try {
      const parameters = bindMessage(this.name, this.values.map(prepareValue))
      if (isNew) connection.parse({ name: this.name, text: this.text, types: [] }, true)
      for (const part of parameters) stream.write(part)
      if (isNew) connection.describe({ type: 'P' }, true)
      connection.execute({}, true)
      connection.sync()
      return undefined
    } catch (error) {
      return error as Error
    } finally {
      stream.uncork()
    }
  }

  handleRowDescription({ fields }: { fields: { dataTypeID: number }[] }): void {
    this.parsers = fields.map(({ dataTypeID }) => (dataTypeID === INT8 ? asText : (pg.types.getTypeParser(dataTypeID) as Parser)))
  }

  handleDataRow({ fields }: { fields: (string | null)[] }): void {
    const { parsers } = this
    this.rows.push(fields.map((text, i) => (text === null ? null : parsers![i]!(text))) as Row)
  }

  handleCommandComplete(): void {
    this.known?.set(this.text, this.parsers ?? [])
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
