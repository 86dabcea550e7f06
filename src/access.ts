import { createHash, timingSafeEqual } from 'node:crypto'

/**
 * Who may come in: the keys, what each may do, and which doors a browser may use. Decisions only; plugins/auth.ts stands
 * at the door.
 *
 * A key is written `name:scope:secret`, several of them with spaces, commas or line ends between. Scopes are joined by `+`.
 * In place of the secret may stand `sha256=` and the 64 hex digits of its digest, so that the configuration holds nothing to
 * steal. A name may stand more than once: while clients change over, their old and their new secret are both good.
 */

/** `mediator`: the operations. `admin`: the administration and /metrics. Neither contains the other. */
export const SCOPES = ['mediator', 'admin'] as const
export type Scope = (typeof SCOPES)[number]

/** What a route asks of whoever comes: nothing, any key, or a key with this scope. */
export type Access = 'open' | 'any key' | Scope

export interface ApiKey {
  name: string
  /** SHA-256 of the secret. The secret itself is kept nowhere. */
  digest: Buffer
  scopes: readonly Scope[]
}

// A digest may be tried out by whoever reads the configuration, at billions of guesses a second: the secret must be a random one.
const MIN_SECRET_LENGTH = 20
const NAME = /^[A-Za-z0-9._-]{1,64}$/
// [RFC 3986 2.3] What passes unescaped through `ws://name:secret@host`, the only way of some clients to give a key.
const SECRET = /^[A-Za-z0-9._~-]+$/
const DIGEST = /^sha256=([0-9a-fA-F]{64})$/

/** @returns the keys, and what is wrong with the others, without anything that may be a secret. Lines from `#` on are comments. */
export function parseApiKeys(text: string): { keys: ApiKey[]; faults: string[] } {
  const keys: ApiKey[] = []
  const faults: string[] = []
  const entries = text
    .replace(/^\s*#.*$/gm, '')
    .split(/[\s,]+/)
    .filter((entry) => entry !== '')
  for (const [i, entry] of entries.entries()) {
    const result = parseApiKey(entry)
    if (typeof result === 'string') faults.push(`key ${i + 1} ${result}`)
    else keys.push(result)
  }
  return { keys, faults }
}

function parseApiKey(entry: string): ApiKey | string {
  const [name = '', scopeList = '', secret = '', ...rest] = entry.split(':')
  if (secret === '' || rest.length > 0) return 'is not of the form name:scope:secret'
  if (!NAME.test(name)) return 'has a name with other characters than letters, digits, dots, dashes and underscores (64 at most)'
  const scopes = scopeList.split('+')
  if (!scopes.every((scope) => (SCOPES as readonly string[]).includes(scope))) {
    return `("${name}") has other scopes than ${SCOPES.join(', ')}, or both as ${SCOPES.join('+')}`
  }
  const digest = DIGEST.exec(secret)
  if (!digest && secret.startsWith('sha256=')) return `("${name}") has a sha256= without 64 hex digits`
  if (!digest && !SECRET.test(secret)) return `("${name}") has a secret with other characters than letters, digits and . _ ~ -`
  if (!digest && secret.length < MIN_SECRET_LENGTH) {
    return `("${name}") has a secret of less than ${MIN_SECRET_LENGTH} characters: take what "openssl rand -hex 32" prints`
  }
  return { name, digest: digest ? Buffer.from(digest[1]!, 'hex') : sha256(secret), scopes: scopes as Scope[] }
}

/**
 * The key in an Authorization header: `Bearer secret`, or `Basic` with the key's name and secret.
 * All keys are compared, each in constant time: how long it takes says neither whether nor which key was nearly right.
 */
export function findKey(keys: readonly ApiKey[], authorization: string | undefined): ApiKey | undefined {
  const given = authorization === undefined ? undefined : credentials(authorization)
  if (!given) return undefined
  const digest = sha256(given.secret)
  let found: ApiKey | undefined
  for (const key of keys) {
    if (timingSafeEqual(key.digest, digest) && (given.name === undefined || given.name === key.name)) found = key
  }
  return found
}

/** [RFC 7617], [RFC 6750 2.1]; the scheme is case-insensitive [RFC 9110 11.1]. */
function credentials(authorization: string): { name?: string; secret: string } | undefined {
  const [, scheme = '', value = ''] = /^(\S+) +(\S+) *$/.exec(authorization) ?? []
  if (scheme.toLowerCase() === 'bearer') return { secret: value }
  if (scheme.toLowerCase() !== 'basic') return undefined
  const text = Buffer.from(value, 'base64').toString()
  const colon = text.indexOf(':')
  return colon < 0 ? undefined : { name: text.slice(0, colon), secret: text.slice(colon + 1) }
}

export function isAllowed(key: ApiKey, access: Access): boolean {
  return access === 'open' || access === 'any key' || key.scopes.includes(access)
}

/** Whether only this machine can reach what listens on the address. */
export function isLoopback(host: string): boolean {
  return host === 'localhost' || host === '::1' || /^127\.\d+\.\d+\.\d+$/.test(host)
}

/**
 * Whether a page of this origin may call. Only browsers send an origin, and ours comes from the host that was called; a host
 * that merely resolves to us is for `isKnownHost`.
 */
export function isAllowedOrigin(origin: string, host: string | undefined, allowed: readonly string[]): boolean {
  return allowed.includes(origin) || (URL.canParse(origin) && new URL(origin).host === host?.toLowerCase())
}

/**
 * For a service on the loopback without keys, where a stranger's page could otherwise call by a name of its own that resolves to
 * 127.0.0.1 (DNS rebinding): it must be called by a name of this machine, or of an allowed origin.
 */
export function isKnownHost(host: string, allowed: readonly string[]): boolean {
  if (!URL.canParse(`http://${host}`)) return false
  const { hostname } = new URL(`http://${host}`)
  return isLoopback(hostname.replace(/^\[|\]$/g, '')) || allowed.some((origin) => new URL(origin).hostname === hostname)
}

function sha256(text: string): Buffer {
  return createHash('sha256').update(text).digest()
}
