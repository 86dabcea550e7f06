import { existsSync, readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { drizzle } from 'drizzle-orm/postgres-js'
import { migrate } from 'drizzle-orm/postgres-js/migrator'
import pg from 'pg'
import postgres from 'postgres'
import type { Log } from '../../src/ports.js'
import { SEQS_IN_A_ROW } from './add-statements.js'

/** Where the database is: a URL, or the Unix socket of the embedded one. */
export type Connection = { connectionString: string } | { host: string; port: number; user: string; database: string }

const LOCK = 7_226_031_645 // any number that no other program on this database uses
const CONNECT_TIMEOUT_MS = 30_000

/**
 * Brings the schema up to date, or with `apply: false` only checks that it is. Instances that boot together take turns
 * under an advisory lock; four without it failed in three of four cases. A role without DDL rights may run this when
 * nothing is to be done.
 *
 * @throws Error with a sentence for the operator
 */
export async function migrateDatabase(connection: Connection, { apply, log }: { apply: boolean; log: Log }): Promise<void> {
  const sql = postgres({ ...connectOptions(connection), max: 1, onnotice: () => {}, connect_timeout: 5 })
  try {
    await waitForDatabase(sql, log)
    await sql`SELECT pg_advisory_lock(${LOCK})` // freed with the connection
    if (await isCurrent(sql)) return await checkOrder(sql)
    if (!apply) throw new Error('The database schema is not up to date. Run npm run migrate, or set MIGRATE_ON_BOOT=true.')
    await migrate(drizzle(sql), { migrationsFolder })
    log.info({ migrations: journal().length }, 'database schema is up to date')
  } catch (error) {
    const cause = (error as Error).cause ?? error
    if ((cause as { code?: string }).code !== '42501') throw error
    throw new Error(
      'The role of DATABASE_URL may not change the database schema. Run npm run migrate with a role that may, and set MIGRATE_ON_BOOT=false.',
      { cause },
    )
  } finally {
    await sql.end({ timeout: 5 })
  }
}

/** The URL as pg reads it (sockets, ssl), for postgres.js, which reads some of it in another way. */
export function connectOptions(connection: Connection) {
  const { host, port, user, password, database, ssl } = new pg.Client(connection)
  return { host, port, user, password: password ?? undefined, database, ssl: ssl as boolean | object }
}

/** In a compose file the database starts at the same moment as we do. */
async function waitForDatabase(sql: postgres.Sql, log: Log): Promise<void> {
  const deadline = performance.now() + CONNECT_TIMEOUT_MS
  for (let tries = 1; ; tries++) {
    try {
      await sql`SELECT 1`
      return
    } catch (error) {
      const { code } = error as { code?: string }
      const isFinal = code?.startsWith('28') || code === '3D000' // wrong password, no such database
      if (isFinal || performance.now() > deadline) {
        throw new Error(
          `Cannot connect to the database of DATABASE_URL (${code ?? (error as Error).message}). Check that it runs and that user, password and database name are right.`,
          { cause: error },
        )
      }
      if (tries === 1) log.warn({ code }, 'database does not answer yet, waiting for it')
      await sleep(250)
    }
  }
}

/** What the tables themselves do not show when somebody made them anew, to partition them: without it messages change places, or come twice. */
async function checkOrder(sql: postgres.Sql): Promise<void> {
  const [found] =
    await sql`SELECT (SELECT seqincrement FROM pg_sequence WHERE seqrelid = to_regclass('queued_messages_seq_seq')) AS increment,
    EXISTS (SELECT FROM pg_trigger WHERE tgrelid = 'queued_messages'::regclass AND tgname = 'remember_keys' AND tgenabled = 'O') AS remembers`
  if (!(Number(found!.increment) >= SEQS_IN_A_ROW)) {
    throw new Error(
      `The sequence queued_messages_seq_seq must go on by ${SEQS_IN_A_ROW}, or messages change places. Run: ALTER SEQUENCE queued_messages_seq_seq INCREMENT BY ${SEQS_IN_A_ROW}`,
    )
  }
  if (!found!.remembers) {
    throw new Error(
      'The table queued_messages has lost its trigger remember_keys, and messages would come twice. Create it again as drizzle/migrations/0007_remember_keys.sql does.',
    )
  }
}

async function isCurrent(sql: postgres.Sql): Promise<boolean> {
  const [table] = await sql`SELECT to_regclass('drizzle.__drizzle_migrations') AS name`
  if (!table?.name) return false
  const [last] = await sql`SELECT max(created_at) AS at FROM drizzle.__drizzle_migrations`
  return Number(last?.at) >= Math.max(...journal().map(({ when }) => when))
}

const migrationsFolder = findMigrations()

function journal(): { when: number }[] {
  return (JSON.parse(readFileSync(join(migrationsFolder, 'meta/_journal.json'), 'utf8')) as { entries: { when: number }[] }).entries
}

/** From the sources and from dist/ alike. */
function findMigrations(): string {
  for (let folder = dirname(fileURLToPath(import.meta.url)); ; folder = dirname(folder)) {
    const migrations = join(folder, 'drizzle/migrations')
    if (existsSync(join(migrations, 'meta/_journal.json'))) return migrations
    if (folder === dirname(folder)) throw new Error('drizzle/migrations is missing from this installation.')
  }
}
