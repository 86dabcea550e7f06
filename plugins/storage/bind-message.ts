import { Buffer } from 'node:buffer' // docs/decisions/0008, “The globals of Node”

/** A parameter of a statement: a string in text form, a buffer in binary form. */
export type Value = string | Buffer | null

/** What is longer is not copied. */
const WORTH_SPARING_BYTES = 16 * 1024

const CODE = 'B'.charCodeAt(0)
const TEXT = 0
const BINARY = 1
const NULL_BYTES = -1

/**
 * The message that gives a prepared statement its parameters, in the unnamed portal, and asks for rows as text [PostgreSQL, 55.7 Bind]. pg's own copies
 * a batch of payloads once more, into a buffer that is half as large again. docs/decisions/0008
 * @returns its parts, to be written one after the other
 */
export function bindMessage(statement: string, values: readonly Value[]): Buffer[] {
  const data = values.map((value) => (typeof value === 'string' ? Buffer.from(value) : value))
  const isSpared = (bytes: Buffer) => bytes.length > WORTH_SPARING_BYTES
  const name = Buffer.from(statement)
  const size = { message: 1 + 4 + 1 + name.length + 1 + 2 + 2 * values.length + 2 + 4 * values.length + 4, spared: 0 }
  for (const bytes of data) if (bytes) size[isSpared(bytes) ? 'spared' : 'message'] += bytes.length

  const message = Buffer.allocUnsafe(size.message)
  const parts: Buffer[] = []
  let begun = 0
  let at = message.writeUInt8(CODE)
  at = message.writeInt32BE(size.message - 1 + size.spared, at)
  at = message.writeUInt8(0, at)
  at += name.copy(message, at)
  at = message.writeUInt8(0, at)
  at = message.writeInt16BE(values.length, at)
  for (const value of values) at = message.writeInt16BE(value instanceof Buffer ? BINARY : TEXT, at)
  at = message.writeInt16BE(values.length, at)
  for (const bytes of data) {
    at = message.writeInt32BE(bytes?.length ?? NULL_BYTES, at)
    if (!bytes) continue
    if (isSpared(bytes)) {
      parts.push(message.subarray(begun, at), bytes)
      begun = at
    } else {
      at += bytes.copy(message, at)
    }
  }
  at = message.writeInt16BE(1, at) // one form for all columns
  message.writeInt16BE(TEXT, at)
  parts.push(message.subarray(begun))
  return parts
}
