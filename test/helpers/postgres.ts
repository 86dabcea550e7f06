import { randomUUID } from 'node:crypto'
import { chmodSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import pg from 'pg'
import { startEmbeddedPostgres } from '../../plugins/storage/embedded.js'

/** A log that nobody reads. */
export const silent = { debug() {}, info() {}, warn() {}, error() {} }

export interface TestPostgres {
  /** URL of the server's own database. */
  url: string
  stop(): Promise<void>
}

/** A real Postgres for the tests: that of TEST_DATABASE_URL, or one of our own in a temporary folder. */
export async function startTestPostgres(): Promise<TestPostgres> {
  if (process.env.TEST_DATABASE_URL) return { url: process.env.TEST_DATABASE_URL, stop: async () => {} }
  const folder = mkdtempSync(join(tmpdir(), 'mpr-test-'))
  chmodSync(folder, 0o711) // as root Postgres is another user; what it cannot enter would be kept elsewhere
  const embedded = await startEmbeddedPostgres(folder, silent)
  const { host, port, user, database } = embedded.connection
  return {
    url: `postgres://${user}@${encodeURIComponent(host)}:${port}/${database}`,
    async stop() {
      await embedded.stop()
      rmSync(folder, { recursive: true, force: true })
    },
  }
}

/** A database of its own, empty and not migrated. */
export async function createDatabase(server: string): Promise<{ url: string; drop(): Promise<void> }> {
  const name = `test_${randomUUID().replaceAll('-', '')}`
  await onDatabase(server, `CREATE DATABASE ${name}`)
  return {
    url: server.replace(/\/[^/?]*(\?|$)/, `/${name}$1`),
    drop: async () => void (await onDatabase(server, `DROP DATABASE IF EXISTS ${name} WITH (FORCE)`)),
  }
}

/** Runs one statement on a connection of its own. */
export async function onDatabase(url: string, statement: string): Promise<Record<string, unknown>[]> {
  const client = new pg.Client(url)
  await client.connect()
  try {
    return (await client.query<Record<string, unknown>>(statement)).rows
  } finally {
    await client.end()
  }
}
