import closeWithGrace from 'close-with-grace'
import Fastify from 'fastify'
import app, { serverOptions } from './app.js'
import { tryPush } from './plugins/push/try.js'
import { migrateDatabase } from './plugins/storage/migrate.js'
import { isLoopback } from './src/access.js'
import { ConfigError, describeConfig, hasApiKeys, readConfig } from './src/config.js'
import { tuneV8 } from './src/v8.js'

// Longer than the drain: calls end by their deadline, sockets within 2 s, an embedded Postgres in about one.
const SHUTDOWN_MS = 10_000

/**
 * Connections that the system has made and we have not accepted yet; it takes less when net.core.somaxconn says so. Beyond them it drops
 * what clients send to connect, and they repeat that after 1, 3, 7, 15 s: with Node's own 511, of 10,000 that came back at once the last
 * were back after 28 s, in 20 of which the service had nothing to do.
 */
const BACKLOG = 65_535

const HELP = `Message Pickup Repository

  npm start                 run the service
  npm run migrate           bring the schema of DATABASE_URL up to date and exit
  npm run push:test -- --token <registration token> [--project <name>]
                            send one push and say what came of it
  npm start -- --help       this text

Environment:
${describeConfig('text')}
`

async function main(): Promise<void> {
  tuneV8()
  if (process.argv.includes('--help')) return void process.stdout.write(HELP)
  const config = readConfig(process.env)
  if (process.argv.includes('--push-test')) {
    const wasSent = await tryPush(config, process.argv, (line) => process.stdout.write(`${line}\n`))
    process.exitCode = wasSent ? 0 : 1
    return
  }
  const fastify = Fastify(serverOptions(config))

  if (process.argv.includes('--migrate')) {
    if (config.DATABASE_URL === undefined) throw new ConfigError('DATABASE_URL is not set. The embedded database is migrated at boot.')
    return migrateDatabase({ connectionString: config.DATABASE_URL }, { apply: true, log: fastify.log })
  }

  let isServing = false
  // With a file of keys it means "read them again" (plugins/auth.ts); without, what it always did: the terminal is gone.
  const skip: 'SIGHUP'[] = config.API_KEYS_FILE === undefined ? [] : ['SIGHUP']
  closeWithGrace({ delay: SHUTDOWN_MS, logger: fastify.log, skip }, async ({ err, signal }) => {
    if (err) fastify.log.fatal({ err }, 'unexpected failure, shutting down')
    else fastify.log.info({ signal }, 'shutting down')
    // Closing waits until everything is open, and what is not may be waiting for a database. Nothing is served yet.
    if (isServing) await fastify.close()
  })
  await fastify.register(app, { config })
  await fastify.listen({ host: config.HOST, port: config.PORT, backlog: BACKLOG })
  isServing = true
  const { port } = fastify.server.address() as { port: number }
  const host = config.HOST.includes(':') ? `[${config.HOST}]` : config.HOST
  if (!hasApiKeys(config)) {
    if (isLoopback(config.HOST)) fastify.log.info({}, 'no API key is set: only this machine can reach the service')
    else fastify.log.warn({ host: config.HOST }, 'whoever reaches this address can read and delete mail: keep it in a private network')
  }
  fastify.log.info({ api: `http://${host}:${port}/v1`, rpc: `ws://${host}:${port}/ws`, docs: `http://${host}:${port}/docs` }, 'ready')
}

main().catch((error: unknown) => {
  // What the operator can mend is a sentence; anything else comes with its stack.
  const known = error instanceof Error && (error instanceof ConfigError || error.constructor === Error)
  process.stderr.write(`${known ? error.message : String((error as Error).stack ?? error)}\n`)
  process.exit(1)
})
