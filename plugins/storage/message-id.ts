/** A message's id on the wire: its seq and the random tag of the process that added it. docs/decisions/0001 */

/** An integer column. */
export const MAX_TAG = 2 ** 31

export function formatId(seq: string, tag: number): string {
  return `${seq}-${tag.toString(36)}`
}

export function parseId(id: string): { seq: string; tag: number } | undefined {
  const match = /^(\d{1,18})-([0-9a-z]{1,6})$/.exec(id)
  const tag = match ? parseInt(match[2]!, 36) : NaN
  return match && tag < MAX_TAG ? { seq: match[1]!, tag } : undefined
}
