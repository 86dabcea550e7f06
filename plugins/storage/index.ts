import fastifyPostgres from '@fastify/postgres'
import fp from 'fastify-plugin'
import pg, { type ClientBase, type PoolConfig } from 'pg'
import type { Config } from '../../src/config.js'
import type { Administration, MessageStore, PushOutbox, SessionDirectory } from '../../src/ports.js'
import { startEmbeddedPostgres } from './embedded.js'
import { migrateDatabase, type Connection } from './migrate.js'
import { createPostgresAdministration } from './postgres-administration.js'
import { createPostgresOutbox } from './postgres-outbox.js'
import { createPostgresSessions } from './postgres-sessions.js'
import { createPostgresStore } from './postgres-store.js'
import { createQuery } from './query.js'

declare module 'fastify' {
  interface FastifyInstance {
    store: MessageStore
    sessions: SessionDirectory
    pushOutbox: PushOutbox
    administration: Administration
  }
}

// Every call is answered within 1.5 s: Postgres gives up first, then our side of the connection, then the call.
const STATEMENT_TIMEOUT_MS = 1_200
const QUERY_TIMEOUT_MS = 1_300
const CONNECT_TIMEOUT_MS = 1_000

/**
 * The administration reads whole tables and is asked by people. Its own connections, made when it is asked and closed 10 s later, keep
 * it from the pool that calls wait for; two, so that a purge does not wait for a list. A scan takes one process of Postgres and no more.
 */
const ADMINISTRATION = {
  max: 2,
  statement_timeout: 5_000,
  query_timeout: 5_300,
  idleTimeoutMillis: 10_000,
  onConnect: (client: ClientBase) => client.query(`${PLANNER}; SET max_parallel_workers_per_gather = 0`),
}

/** A claim of a push outlasts its sending by this, for a slow database. */
const SETTLING_MS = 5_000

/**
 * Every statement is keyed and meant for one index, so the planner is kept from anything else. A plan made while the table was
 * empty, or without statistics, would otherwise read the whole queue or the whole index for ten messages (65 ms instead of
 * 0.1 for a count of ten, test/plans.test.ts). Generic plans, because planning a take anew each time costs more than taking
 * (502 against 218 µs); no JIT, because compiling costs more than any of these statements.
 */
const PLANNER = 'SET enable_seqscan = off; SET enable_bitmapscan = off; SET jit = off; SET plan_cache_mode = force_generic_plan'

/** For every pool whose connections run the statements of this folder. pg waits for it. */
export const PLANNING = { onConnect: (client: ClientBase) => client.query(PLANNER) }

/**
 * Decorates `store`, `sessions`, `pushOutbox` and `administration`, all on one Postgres: that of DATABASE_URL, or an embedded one that
 * lives as long as the app.
 */
export default fp<{ config: Config }>(
  async (app, { config }) => {
    let connection: Connection
    if (config.DATABASE_URL === undefined) {
      const embedded = await startEmbeddedPostgres(config.DATA_DIR, app.log)
      app.addHook('onClose', () => embedded.stop()) // registered before the pool, so it runs after the pool has ended
      connection = embedded.connection
      app.log.info({ folder: config.DATA_DIR }, 'embedded postgres is running')
    } else {
      connection = { connectionString: config.DATABASE_URL }
    }
    await migrateDatabase(connection, { apply: config.MIGRATE_ON_BOOT, log: app.log })

    const poolOptions: PoolConfig = {
      ...connection,
      max: config.DATABASE_POOL_SIZE,
      application_name: 'message-pickup-repository',
      statement_timeout: STATEMENT_TIMEOUT_MS,
      query_timeout: QUERY_TIMEOUT_MS,
      connectionTimeoutMillis: CONNECT_TIMEOUT_MS,
      keepAlive: true,
      ...PLANNING,
    }
    await app.register(fastifyPostgres, poolOptions)
    const { pool } = app.pg
    pool.on('error', (err) => app.log.warn({ err }, 'a database connection was lost'))

    const administrationPool = new pg.Pool({ ...poolOptions, ...ADMINISTRATION })
    administrationPool.on('error', (err) => app.log.warn({ err }, 'a database connection was lost'))
    app.addHook('onClose', () => administrationPool.end())
    app.decorate('administration', createPostgresAdministration({ pool: administrationPool }))

    const query = createQuery(pool)
    const pushes = config.FIREBASE_CREDENTIALS !== undefined
    const sessions = createPostgresSessions({ pool, query, pushWindowMs: pushes ? config.PUSH_WINDOW_MS : undefined })
    if (config.DATABASE_URL === undefined) await sessions.disown()
    await sessions.renew()
    app.decorate('sessions', sessions)
    const { instanceId } = sessions
    app.decorate('store', createPostgresStore({ query, instanceId, messageTtlSeconds: config.MESSAGE_TTL_SECONDS, pushes }))
    app.decorate(
      'pushOutbox',
      createPostgresOutbox({ pool, query, windowMs: config.PUSH_WINDOW_MS, claimMs: config.PUSH_TIMEOUT_MS + SETTLING_MS }),
    )
  },
  { name: 'storage' },
)
