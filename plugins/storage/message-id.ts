/** A message's id on the wire: its seq and the random tag of the process that added it. docs/decisions/0001 */

/** An integer column. */
export const MAX_TAG = 2 ** 31

const TAG_DIGITS = 6

/**
 * At least 8 characters: a wallet of Credo refuses a whole batch of pickup V1 in which one id is shorter.
 * @see Aries RFC 0008, "Message ID Requirements"
 */
export function formatId(seq: string, tag: number): string {
  return `${seq}-${tag.toString(36).padStart(TAG_DIGITS, '0')}`
}

export function parseId(id: string): { seq: string; tag: number } | undefined {
  const match = /^(\d{1,18})-([0-9a-z]{1,6})$/.exec(id)
  const tag = match ? parseInt(match[2]!, 36) : NaN
  return match && tag < MAX_TAG ? { seq: match[1]!, tag } : undefined
}
