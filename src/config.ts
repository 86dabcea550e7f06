import { readFileSync } from 'node:fs'
import { Type, type Static, type TSchema } from '@sinclair/typebox'
import { Value } from '@sinclair/typebox/value'
import { isLoopback, parseApiKeys } from './access.js'
import type { Limits } from './contract.js'

const MIB = 1024 * 1024

const settings = {
  HOST: Type.String({ default: '127.0.0.1', minLength: 1, description: 'Address to listen on. `0.0.0.0` opens it to the network.' }),
  PORT: Type.Integer({ default: 3000, minimum: 0, maximum: 65_535, description: 'Port to listen on; 0 takes a free one.' }),
  API_KEYS: Type.Optional(
    Type.String({
      description:
        'Keys that let clients in, `name:scope:secret`, separated by spaces, commas or lines. Scopes: `mediator`, `admin`, `mediator+admin`. `sha256=` and its digest may stand for the secret. Without keys only this machine gets in.',
      secret: true,
    }),
  ),
  API_KEYS_FILE: Type.Optional(
    Type.String({ description: 'File with more keys; lines from `#` on are comments. Read again when it changes, and on SIGHUP.' }),
  ),
  ALLOW_UNAUTHENTICATED: Type.Boolean({
    default: false,
    description: 'Listen on other addresses than the loopback without keys: whoever reaches them can read and delete mail.',
  }),
  ALLOWED_ORIGINS: Type.Optional(
    Type.String({
      pattern: '^https?://[^\\s,/]+(\\s*,\\s*https?://[^\\s,/]+)*$',
      description: 'Origins whose pages may call from a browser, beside our own: `https://admin.example.org,…`.',
    }),
  ),
  OPEN_DOCS: Type.Boolean({ default: false, description: 'Show /docs without a key. (Without keys it is always open.)' }),
  TRUSTED_PROXIES: Type.Optional(
    Type.String({ description: 'Addresses or networks of proxies whose X-Forwarded-For is believed: `10.0.0.0/8,…`.' }),
  ),
  MAX_FAILED_KEYS_PER_MINUTE: Type.Integer({
    default: 30,
    minimum: 1,
    description: 'Requests without a good key that one address gets 401 for; the others get 429. Requests with a good key do not count.',
  }),
  RATE_LIMIT_REQUESTS_PER_SECOND: Type.Integer({
    default: 0,
    minimum: 0,
    description: 'HTTP requests (REST and new sockets) of one key, or of one address without keys; 0 = no limit.',
  }),
  RATE_LIMIT_CALLS_PER_SECOND: Type.Integer({
    default: 0,
    minimum: 0,
    description: 'Calls over all sockets of one key, or of one address without keys; 0 = no limit.',
  }),
  DATABASE_URL: Type.Optional(
    Type.String({
      pattern: '^postgres(ql)?://',
      description: 'Postgres (14 or newer) that keeps the queue. Without it an embedded Postgres is started in `DATA_DIR`.',
      secret: true,
    }),
  ),
  DATABASE_POOL_SIZE: Type.Integer({ default: 10, minimum: 2, maximum: 1_000, description: 'Connections to Postgres of this instance.' }),
  MIGRATE_ON_BOOT: Type.Boolean({
    default: true,
    description: 'Bring the database schema up to date at boot. `false` when it is done apart, by `npm run migrate`.',
  }),
  DATA_DIR: Type.String({ default: './data', minLength: 1, description: 'Folder of the embedded Postgres. Not used with `DATABASE_URL`.' }),
  REDIS_URL: Type.Optional(
    Type.String({
      pattern: '^rediss?://',
      description:
        'Redis that tells instances of new messages: `redis://user:password@host:6379/0`, or `rediss://` for TLS (a private authority by NODE_EXTRA_CA_CERTS). Needs `DATABASE_URL`; without a Redis, Postgres does it.',
      secret: true,
    }),
  ),
  REDIS_NODES: Type.Optional(
    Type.String({
      pattern: '^[^\\s,:]+:\\d+(\\s*,\\s*[^\\s,:]+:\\d+)*$',
      description: 'Nodes of a Redis Cluster (7 or newer) instead of `REDIS_URL`: `host:port,host:port`.',
    }),
  ),
  REDIS_NAT_MAP: Type.Optional(
    Type.String({
      pattern: '^[^\\s,=]+:\\d+=[^\\s,=]+:\\d+(\\s*,\\s*[^\\s,=]+:\\d+=[^\\s,=]+:\\d+)*$',
      description: 'Where the nodes of the Cluster are for us, when they name themselves otherwise: `10.0.0.1:6379=localhost:7001,…`.',
    }),
  ),
  REDIS_USERNAME: Type.Optional(Type.String({ description: 'ACL user for `REDIS_NODES`.' })),
  REDIS_PASSWORD: Type.Optional(Type.String({ description: 'Password for `REDIS_NODES`.', secret: true })),
  REDIS_TLS: Type.Boolean({ default: false, description: 'TLS to `REDIS_NODES`.' }),
  REDIS_PREFIX: Type.String({ default: 'mpr:', description: 'Begins the name of every channel, for a Redis that is shared.' }),
  LOG_LEVEL: Type.Union(
    ['trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent'].map((level) => Type.Literal(level)),
    { default: 'info', description: 'The least severe log lines to write.' },
  ),
  LEASE_MS: Type.Integer({
    default: 30_000,
    minimum: 0,
    maximum: 3_600_000,
    description: 'How long a message taken or pushed during a live session stays in flight (milliseconds); 0 switches leases off.',
  }),
  PING_INTERVAL_MS: Type.Integer({
    default: 25_000,
    minimum: 100,
    maximum: 3_600_000,
    description: 'A socket silent for this long is pinged (milliseconds).',
  }),
  PONG_TIMEOUT_MS: Type.Integer({
    default: 8_000,
    minimum: 100,
    maximum: 3_600_000,
    description: 'A socket that does not answer a ping in this time is closed (milliseconds).',
  }),
  STALL_TIMEOUT_MS: Type.Integer({
    default: 60_000,
    minimum: 100,
    maximum: 3_600_000,
    description: 'A socket that takes nothing of what it is sent for this long is closed (milliseconds).',
  }),
  MESSAGE_TTL_SECONDS: Type.Integer({
    default: 30 * 24 * 3600,
    minimum: 0,
    description: 'Messages older than this expire (seconds); 0 keeps them until they are removed.',
  }),
  FIREBASE_CREDENTIALS: Type.Optional(
    Type.String({
      description:
        'Turns pushes through FCM on. The service account of a Firebase project: a file, its JSON, or `application-default`. Several projects by name: `main=/run/main.json,other=/run/other.json`, or a JSON object of accounts; the first is the default.',
      secret: true,
    }),
  ),
  PUSH_TITLE: Type.String({ default: 'New message', minLength: 1, maxLength: 200, description: 'Title of a push.' }),
  PUSH_BODY: Type.String({ default: 'You have received a new message', minLength: 1, maxLength: 1_000, description: 'Text of a push.' }),
  PUSH_DATA_ONLY: Type.Boolean({
    default: false,
    description: 'Send pushes without title and text: the app is woken and decides what to show.',
  }),
  PUSH_TAG_SECRET: Type.Optional(
    Type.String({
      minLength: 16,
      description:
        'When set, a push carries `tag`, an HMAC of the connectionId under this secret, so that an app can tell its connections apart. Otherwise it carries nothing.',
      secret: true,
    }),
  ),
  PUSH_WINDOW_MS: Type.Integer({
    default: 5_000,
    minimum: 0,
    maximum: 3_600_000,
    description:
      'Between two pushes to one device lies at least this time (milliseconds). After the end of a live session as long is waited, and at least 1.5 s.',
  }),
  PUSH_TIMEOUT_MS: Type.Integer({
    default: 10_000,
    minimum: 100,
    maximum: 20_000,
    description: 'FCM has this long to take a push (milliseconds).',
  }),
  PUSH_RETRY_MS: Type.Integer({
    default: 10_000,
    minimum: 10,
    maximum: 600_000,
    description:
      'After a first failure a push is sent again after about this time, then after twice that, and so on up to 10 minutes (milliseconds).',
  }),
  PUSH_GIVE_UP_SECONDS: Type.Integer({
    default: 3_600,
    minimum: 1,
    description: 'A push that could not be sent for this long is given up (seconds). The message stays.',
  }),
  QUOTA_MESSAGES: Type.Integer({ default: 10_000, minimum: 0, description: 'Messages that may wait per connection; 0 = no limit.' }),
  QUOTA_BYTES: Type.Integer({
    default: 256 * MIB,
    minimum: 0,
    description: 'Bytes of payload that may wait per connection; 0 = no limit.',
  }),
  MAX_PAYLOAD_BYTES: Type.Integer({ default: 5 * MIB, minimum: 1, description: 'Bytes of one payload as JSON text.' }),
  MAX_FRAME_BYTES: Type.Integer({
    default: 8 * MIB,
    minimum: 1024,
    description: 'Bytes of one WebSocket frame or HTTP body. A larger frame closes the socket with 1009.',
  }),
  MAX_DEPTH: Type.Integer({ default: 64, minimum: 4, maximum: 1_000, description: 'Levels of nesting of a frame or body.' }),
  MAX_BATCH: Type.Integer({ default: 100, minimum: 1, description: 'Calls in one JSON-RPC batch.' }),
  MAX_CALLS_IN_FLIGHT: Type.Integer({
    default: 32,
    minimum: 1,
    description: 'Calls of one socket that run at the same time. Its next ones are not read until there is room.',
  }),
  MAX_CALLS_PER_INSTANCE: Type.Integer({
    default: 16_384,
    minimum: 1,
    description: 'Calls of all clients that run at the same time. The next ones are refused as `overloaded`, to be tried again.',
  }),
  MAX_CONNECTION_ID_LENGTH: Type.Integer({
    default: 255,
    minimum: 1,
    maximum: 500,
    description: 'Characters of a connectionId or sessionId.',
  }),
  MAX_DID_LENGTH: Type.Integer({
    default: 65_536,
    minimum: 1,
    description: 'Characters of a DID; long-form did:peer carries whole documents.',
  }),
  MAX_RECIPIENT_DIDS: Type.Integer({ default: 64, minimum: 1, description: 'recipientDids of one message.' }),
  MAX_MESSAGE_IDS: Type.Integer({ default: 1_000, minimum: 1, description: 'messageIds of one removeMessages.' }),
  MAX_TAKE_MESSAGES: Type.Integer({ default: 1_000, minimum: 1, description: 'Messages in one answer of takeFromQueue.' }),
  MAX_TAKE_BYTES: Type.Integer({ default: 8 * MIB, minimum: 1024, description: 'Bytes of payload in one answer of takeFromQueue.' }),
}

type Settings = { [Name in keyof typeof settings]: Static<(typeof settings)[Name]> }

export type Config = Settings & { limits: Limits }

/** The environment was not understood. The message names every fault and what to do about it. */
export class ConfigError extends Error {
  override readonly name = 'ConfigError'
}

/**
 * Reads the configuration. An empty variable counts as not set. A secret may be in a file that NAME_FILE names.
 * @throws ConfigError with all faults at once
 */
export function readConfig(environment: Record<string, string | undefined>): Config {
  const faults: string[] = []
  const values: Record<string, unknown> = {}
  for (const [name, schema] of Object.entries<TSchema>(settings)) {
    const given = schema.secret && name !== 'API_KEYS' ? environment[name] || fromFile(name) : environment[name]
    if (given === undefined || given === '') {
      values[name] = schema.default
      continue
    }
    const value = convert(given, schema)
    if (Value.Check(schema, value)) values[name] = value
    else
      faults.push(
        `${name} must be ${expectation(schema)}${schema.secret ? '' : `; it is ${JSON.stringify(given)}`}. ${remedy(name, schema)}`,
      )
  }
  const config = values as Settings
  if (faults.length === 0) {
    if (config.MAX_PAYLOAD_BYTES > config.MAX_FRAME_BYTES) {
      faults.push(
        `MAX_PAYLOAD_BYTES (${config.MAX_PAYLOAD_BYTES}) is larger than MAX_FRAME_BYTES (${config.MAX_FRAME_BYTES}), which carries it. Raise MAX_FRAME_BYTES.`,
      )
    }
    if (config.QUOTA_BYTES > 0 && config.MAX_PAYLOAD_BYTES > config.QUOTA_BYTES) {
      faults.push(
        `MAX_PAYLOAD_BYTES (${config.MAX_PAYLOAD_BYTES}) is larger than QUOTA_BYTES (${config.QUOTA_BYTES}), so the largest messages could never be stored. Raise QUOTA_BYTES.`,
      )
    }
    faults.push(...accessFaults(config))
  }
  if (faults.length > 0)
    throw new ConfigError(
      `The configuration has ${faults.length} fault(s):\n${faults.map((fault) => `  - ${fault}`).join('\n')}\nnpm start -- --help lists all settings.`,
    )
  return {
    ...config,
    limits: {
      maxPayloadBytes: config.MAX_PAYLOAD_BYTES,
      maxFrameBytes: config.MAX_FRAME_BYTES,
      maxDepth: config.MAX_DEPTH,
      maxBatch: config.MAX_BATCH,
      maxConnectionIdLength: config.MAX_CONNECTION_ID_LENGTH,
      maxDidLength: config.MAX_DID_LENGTH,
      maxRecipientDids: config.MAX_RECIPIENT_DIDS,
      maxMessageIds: config.MAX_MESSAGE_IDS,
      maxTakeMessages: config.MAX_TAKE_MESSAGES,
      maxTakeBytes: config.MAX_TAKE_BYTES,
    },
  }

  function fromFile(name: string): string | undefined {
    const file = environment[`${name}_FILE`]
    if (!file) return undefined
    try {
      return readFileSync(file, 'utf8').trim()
    } catch (error) {
      faults.push(`${name}_FILE cannot be read: ${(error as Error).message}.`)
      return undefined
    }
  }
}

function accessFaults(config: Settings): string[] {
  const { faults } = parseApiKeys(config.API_KEYS ?? '')
  const hasKeys = hasApiKeys(config)
  return [
    ...faults.map((fault) => `API_KEYS: ${fault}.`),
    ...(hasKeys && config.ALLOW_UNAUTHENTICATED
      ? ['There are API keys and ALLOW_UNAUTHENTICATED=true: unset ALLOW_UNAUTHENTICATED (nobody gets in without a key) or the keys.']
      : []),
    ...(hasKeys || config.ALLOW_UNAUTHENTICATED || isLoopback(config.HOST)
      ? []
      : [
          `HOST (${config.HOST}) opens the service to the network and there is no API key: whoever reaches it could read and delete mail. Set API_KEYS or API_KEYS_FILE (README, "Keys"). If strangers are kept out by other means, set ALLOW_UNAUTHENTICATED=true.`,
        ]),
  ]
}

/** Whether there are doors at all: without keys everybody who reaches the service may do everything. */
export function hasApiKeys({ API_KEYS, API_KEYS_FILE }: Pick<Settings, 'API_KEYS' | 'API_KEYS_FILE'>): boolean {
  return API_KEYS !== undefined || API_KEYS_FILE !== undefined
}

/** ALLOWED_ORIGINS, taken apart. */
export function originList(text: string | undefined): string[] {
  return (text ?? '')
    .split(',')
    .map((origin) => origin.trim().toLowerCase())
    .filter((origin) => origin !== '')
}

/** The settings as a Markdown table (README) or as text for a terminal (`--help`). */
export function describeConfig(format: 'markdown' | 'text'): string {
  const rows = Object.entries<TSchema>(settings).map(([name, schema]) => ({
    name,
    default: schema.default === undefined ? '' : String(schema.default),
    description: String(schema.description),
  }))
  if (format === 'markdown') {
    return [
      '| variable | default | meaning |',
      '|---|---|---|',
      ...rows.map((row) => `| \`${row.name}\` | ${row.default && `\`${row.default}\``} | ${row.description} |`),
    ].join('\n')
  }
  const nameWidth = Math.max(...rows.map((row) => row.name.length))
  const defaultWidth = Math.max(...rows.map((row) => row.default.length))
  return rows
    .map((row) => `  ${row.name.padEnd(nameWidth)}  ${row.default.padEnd(defaultWidth)}  ${row.description.replaceAll('`', '')}`)
    .join('\n')
}

function convert(given: string, schema: TSchema): unknown {
  if (schema.type === 'integer') return /^-?\d+$/.test(given) ? Number(given) : given
  if (schema.type === 'boolean') return given === 'true' ? true : given === 'false' ? false : given
  return given
}

function expectation(schema: TSchema): string {
  if (schema.anyOf) return `one of ${(schema.anyOf as { const: string }[]).map((literal) => literal.const).join(', ')}`
  if (schema.type === 'boolean') return 'true or false'
  if (schema.type === 'integer') {
    return schema.maximum === undefined
      ? `a whole number of at least ${schema.minimum}`
      : `a whole number from ${schema.minimum} to ${schema.maximum}`
  }
  if (schema.pattern) return PATTERNS[schema.pattern as string] ?? 'of another form'
  return 'a text that is not empty'
}

const PATTERNS: Record<string, string> = {
  [settings.DATABASE_URL.pattern!]: 'a URL like postgres://user:password@host:5432/database',
  [settings.ALLOWED_ORIGINS.pattern!]: 'a list like https://admin.example.org,https://other.example.org:8443, without paths',
  [settings.REDIS_URL.pattern!]: 'a URL like redis://user:password@host:6379/0 or rediss://… for TLS',
  [settings.REDIS_NODES.pattern!]: 'a list like host:6379,host:6380',
  [settings.REDIS_NAT_MAP.pattern!]: 'a list like 10.0.0.1:6379=localhost:7001,10.0.0.2:6379=localhost:7002',
}

/** REDIS_NODES, taken apart. */
export function clusterNodes(text: string): { host: string; port: number }[] {
  return text.split(',').map((node) => {
    const [host, port] = node.trim().split(':') as [string, string]
    return { host, port: Number(port) }
  })
}

function remedy(name: string, schema: TSchema): string {
  return schema.default === undefined ? `Correct ${name} or unset it.` : `Unset ${name} for the default, ${String(schema.default)}.`
}
