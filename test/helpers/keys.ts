import { createHash } from 'node:crypto'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

/** The key that a test calls by this name. */
export const secret = (name: string) => createHash('sha256').update(name).digest('hex')
export const bearer = (name: string) => ({ authorization: `Bearer ${secret(name)}` })
export const basic = (name: string, password = secret(name)) => ({
  authorization: `Basic ${Buffer.from(`${name}:${password}`).toString('base64')}`,
})

/** A file that is gone after the test. */
export function temporaryFile(t: { teardown(end: () => unknown): void }, text: string): string {
  const folder = mkdtempSync(join(tmpdir(), 'mpr-keys-'))
  t.teardown(() => rmSync(folder, { recursive: true }))
  writeFileSync(join(folder, 'keys'), text)
  return join(folder, 'keys')
}
