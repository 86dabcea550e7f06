import { Buffer } from 'node:buffer' // docs/decisions/0008, “The globals of Node”
import { CallError } from './errors.js'

declare const jsonText: unique symbol
declare const jsonBytes: unique symbol

/**
 * The text of one JSON value. A payload travels through the service in this form and is never parsed into a value
 * that is written out again: `JSON.stringify(JSON.parse(x))` changes numbers past 2^53, escapes and key order.
 */
export type JsonText = string & { readonly [jsonText]: true }

/** The same in UTF-8, a part of what came in: on its way to the store a payload need not be measured, copied or collected. */
export type JsonBytes = Buffer & { readonly [jsonBytes]: true }

export interface ParsedJson {
  value: unknown
  /** What each call has to have as text, by its place in the batch (one when it is not a batch). */
  texts: readonly CallTexts[]
}

export interface CallTexts {
  /** Of the `payload` field. */
  payload: JsonBytes | undefined
  /** Of the `id`: a number past 2^53 would come back as another one. */
  id: string | undefined
}

const QUOTE = 34
const BACKSLASH = 92
const COMMA = 44
const COLON = 58
const OPEN_BRACKET = 91
const CLOSE_BRACKET = 93
const OPEN_BRACE = 123
const CLOSE_BRACE = 125

/**
 * Parses JSON text from a stranger. One pass before `JSON.parse` refuses nesting beyond `maxDepth` (2 MB nested 10^6
 * deep block the event loop for a second) and finds the text of each payload: `params.payload` of a JSON-RPC call or of
 * each call of a batch, or `payload` of a REST body.
 *
 * @throws CallError `too_deep`, `parse_error`
 */
export function parseJson(bytes: Buffer, maxDepth: number, shape: 'rpc' | 'body'): ParsedJson {
  const text = bytes.toString()
  const texts = findTexts(text, bytes, maxDepth, shape)
  try {
    return { value: JSON.parse(text) as unknown, texts }
  } catch {
    throw new CallError('parse_error', 'Parse error: this is not valid JSON.')
  }
}

/** Correct for valid JSON; for anything else it only has to end, because `JSON.parse` has the last word. */
function findTexts(text: string, bytes: Buffer, maxDepth: number, shape: 'rpc' | 'body'): CallTexts[] {
  const before: CallTexts[] = [] // the calls of a batch that have ended
  const hasEscapes = text.includes('\\')
  let payload: JsonBytes | undefined
  let id: string | undefined
  let payloadDepth = shape === 'rpc' ? 2 : 1
  let depth = 0
  let keyFollows = false
  // The current key at the depth of the payload, and at the depth above it.
  let isPayload = false
  let isParams = false
  let isId = false
  let payloadStart = -1 // while inside it
  let idStart = -1

  for (let i = 0; i < text.length; i++) {
    const code = text.charCodeAt(i)
    switch (code) {
      case QUOTE: {
        const end = endOfString(text, i)
        if (keyFollows && depth === payloadDepth) {
          isPayload = isKey(text, i, end, 'payload', hasEscapes)
        } else if (keyFollows && depth === payloadDepth - 1) {
          isParams = isKey(text, i, end, 'params', hasEscapes)
          isId = isKey(text, i, end, 'id', hasEscapes)
        }
        keyFollows = false
        i = end
        break
      }
      case COLON:
        if (depth === payloadDepth && isPayload && (isParams || shape === 'body')) payloadStart = i + 1
        else if (depth === payloadDepth - 1 && isId) idStart = i + 1
        break
      case OPEN_BRACE:
      case OPEN_BRACKET:
        if (++depth > maxDepth)
          throw new CallError('too_deep', `JSON must not be nested deeper than ${maxDepth} levels.`, { limit: maxDepth })
        keyFollows = code === OPEN_BRACE
        if (depth === payloadDepth) isPayload = false
        else if (depth === payloadDepth - 1) isParams = isId = false
        if (depth === 1 && !keyFollows && shape === 'rpc') payloadDepth = 3 // a batch
        break
      case COMMA:
      case CLOSE_BRACE:
      case CLOSE_BRACKET:
        if (payloadStart >= 0 && depth === payloadDepth) {
          payload = valueAt(text, bytes, payloadStart, i)
          payloadStart = -1
        }
        if (idStart >= 0 && depth === payloadDepth - 1) {
          id = text.slice(idStart, i).trim()
          idStart = -1
        }
        if (code !== COMMA) {
          depth--
          keyFollows = false
          break
        }
        // Only where a key can stand does the next string count as one; inside arrays it is a value.
        keyFollows = true
        if (depth === 1 && payloadDepth === 3) {
          before.push({ payload, id })
          payload = id = undefined
        }
        break
    }
  }
  return before.length === 0 ? [{ payload, id }] : [...before, { payload, id }]
}

/** The value between two places of the text, without the space around it. */
function valueAt(text: string, bytes: Buffer, start: number, end: number): JsonBytes {
  while (isSpace(text.charCodeAt(start))) start++
  while (end > start && isSpace(text.charCodeAt(end - 1))) end--
  // With as many bytes as characters it is ASCII, and each character is where its byte is.
  return (bytes.length === text.length ? bytes.subarray(start, end) : Buffer.from(text.slice(start, end))) as JsonBytes
}

/** [RFC 8259 2] */
function isSpace(code: number): boolean {
  return code === 0x20 || code === 0x0a || code === 0x0d || code === 0x09
}

function endOfString(text: string, start: number): number {
  let end = start
  for (;;) {
    end = text.indexOf('"', end + 1)
    if (end < 0) return text.length
    let backslashes = 0
    while (text.charCodeAt(end - 1 - backslashes) === BACKSLASH) backslashes++
    if (backslashes % 2 === 0) return end
  }
}

/** Whether the string from `start` to the quote at `end` is this key; `"pay\u006coad"` is the key payload too. */
function isKey(text: string, start: number, end: number, key: string, hasEscapes: boolean): boolean {
  const quotes = 2
  if (end - start + 1 === key.length + quotes) return text.startsWith(key, start + 1)
  if (!hasEscapes || end - start + 1 < key.length + quotes || !text.slice(start, end).includes('\\')) return false
  try {
    return JSON.parse(text.slice(start, end + 1)) === key
  } catch {
    return false
  }
}
