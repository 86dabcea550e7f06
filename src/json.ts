import { CallError } from './errors.js'

declare const jsonText: unique symbol

/**
 * The text of one JSON value. A payload travels through the service in this form and is never parsed into a value
 * that is written out again: `JSON.stringify(JSON.parse(x))` changes numbers past 2^53, escapes and key order.
 */
export type JsonText = string & { readonly [jsonText]: true }

export interface ParsedJson {
  value: unknown
  /** The text of the `payload` field of each call, by its place in the batch (0 when it is not a batch). */
  payloads: JsonText[]
  /** The text of the `id` of each call: a number past 2^53 would come back as another one. */
  ids: string[]
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
export function parseJson(text: string, maxDepth: number, shape: 'rpc' | 'body'): ParsedJson {
  const { payloads, ids } = findTexts(text, maxDepth, shape)
  try {
    return { value: JSON.parse(text) as unknown, payloads, ids }
  } catch {
    throw new CallError('parse_error', 'Parse error: this is not valid JSON.')
  }
}

/** Correct for valid JSON; for anything else it only has to end, because `JSON.parse` has the last word. */
function findTexts(text: string, maxDepth: number, shape: 'rpc' | 'body'): Pick<ParsedJson, 'payloads' | 'ids'> {
  const payloads: JsonText[] = []
  const ids: string[] = []
  let payloadDepth = shape === 'rpc' ? 2 : 1
  const keys: string[] = [] // the current key at each depth down to the payload's
  let isBatch = false
  let place = 0 // in the batch
  let depth = 0
  let keyFollows = false
  let valueStart = -1 // where the payload began, while inside it
  let idStart = -1

  for (let i = 0; i < text.length; i++) {
    switch (text.charCodeAt(i)) {
      case QUOTE: {
        const end = endOfString(text, i)
        if (keyFollows && depth <= payloadDepth) keys[depth] = keyText(text.slice(i, end + 1))
        keyFollows = false
        i = end
        break
      }
      case COLON:
        if (depth === payloadDepth && keys[depth] === 'payload' && (shape === 'body' || keys[depth - 1] === 'params')) {
          valueStart = i + 1
        } else if (depth === payloadDepth - 1 && keys[depth] === 'id') {
          idStart = i + 1
        }
        break
      case OPEN_BRACE:
      case OPEN_BRACKET:
        if (++depth > maxDepth)
          throw new CallError('too_deep', `JSON must not be nested deeper than ${maxDepth} levels.`, { limit: maxDepth })
        keyFollows = text.charCodeAt(i) === OPEN_BRACE
        if (depth <= payloadDepth) keys[depth] = ''
        if (depth === 1 && !keyFollows && shape === 'rpc') {
          isBatch = true
          payloadDepth = 3
        }
        break
      case COMMA:
      case CLOSE_BRACE:
      case CLOSE_BRACKET: {
        const code = text.charCodeAt(i)
        if (valueStart >= 0 && depth === payloadDepth) {
          payloads[place] = text.slice(valueStart, i).trim() as JsonText
          valueStart = -1
        }
        if (idStart >= 0 && depth === payloadDepth - 1) {
          ids[place] = text.slice(idStart, i).trim()
          idStart = -1
        }
        if (code === COMMA) {
          // Only where a key can stand does the next string count as one; inside arrays it is a value.
          keyFollows = true
          if (isBatch && depth === 1) place++
        } else {
          depth--
          keyFollows = false
        }
        break
      }
    }
  }
  return { payloads, ids }
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

/** `"pay\u006coad"` is the key payload too. */
function keyText(quoted: string): string {
  if (!quoted.includes('\\')) return quoted.slice(1, -1)
  try {
    return JSON.parse(quoted) as string
  } catch {
    return ''
  }
}
