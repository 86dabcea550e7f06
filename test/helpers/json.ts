import type { JsonBytes } from '../../src/json.js'

/** A payload as a frame brings it. */
export const jsonBytes = (text: string) => Buffer.from(text) as JsonBytes
