import { Buffer } from 'node:buffer' // docs/decisions/0008, “The globals of Node”

const FINAL_TEXT = 0x81

/**
 * A text as an unmasked WebSocket frame, which is what a server sends. [RFC 6455 5.2]
 *
 * ws makes two buffers of it and an object with a computed key, which V8 has no fast way for: 2.4 % of what an add costs. docs/decisions/0008
 */
export function textFrame(text: string): Buffer {
  const bytes = Buffer.byteLength(text)
  const header = bytes < 126 ? 2 : bytes < 65_536 ? 4 : 10
  const frame = Buffer.allocUnsafe(header + bytes)
  frame[0] = FINAL_TEXT
  if (header === 2) {
    frame[1] = bytes
  } else if (header === 4) {
    frame[1] = 126
    frame.writeUInt16BE(bytes, 2)
  } else {
    frame[1] = 127
    frame.writeBigUInt64BE(BigInt(bytes), 2)
  }
  frame.write(text, header, bytes === text.length ? 'latin1' : 'utf8') // of ASCII they are the same, and one is a copy
  return frame
}

/** Of a text of ASCII with so many characters the length is one byte of its frame. */
export const MAX_SHORT = 125

const HEADERS = Array.from({ length: MAX_SHORT + 1 }, (_, length) => String.fromCharCode(FINAL_TEXT, length))

/**
 * The frames of short texts as one string of which each character is one byte ('latin1'), when all of them are ASCII; otherwise undefined. Many short
 * answers leave as one string, without a buffer and a write for each of them.
 */
export function shortFrames(texts: readonly string[]): string | undefined {
  const parts: string[] = []
  for (const text of texts) parts.push(HEADERS[text.length]!, text)
  const frames = parts.join('')
  const bytesMore = texts.length // in UTF-8 the first byte of each frame would be two
  return Buffer.byteLength(frames) === frames.length + bytesMore ? frames : undefined
}
