import { readFileSync } from 'node:fs'
import { ConfigError } from '../../src/config.js'

/** As firebase-admin's cert() wants it. */
export interface ServiceAccount {
  projectId: string
  clientEmail: string
  privateKey: string
}

/**
 * FIREBASE_CREDENTIALS, by project name; the first is the default.
 * @throws ConfigError naming the project and file, never what is in them
 */
export function readCredentials(text: string): Map<string, ServiceAccount | 'application-default'> {
  const given = text.trim()
  if (given === 'application-default') return new Map([['default', given]])
  if (given.startsWith('{')) {
    const json = parse(given, 'FIREBASE_CREDENTIALS')
    if ('private_key' in json) return new Map([['default', accountOf(json, 'FIREBASE_CREDENTIALS')]])
    if (Object.keys(json).length === 0) throw new ConfigError('FIREBASE_CREDENTIALS is an empty object: it names no project.')
    return new Map(Object.entries(json).map(([name, account]) => [name, accountOf(account, `project ${name} of FIREBASE_CREDENTIALS`)]))
  }
  if (LOOKS_ENCODED.test(given))
    throw new ConfigError(
      'FIREBASE_CREDENTIALS looks like base64. Give the JSON itself, or the path of a file with it (FIREBASE_CREDENTIALS_FILE works too).',
    )
  const accounts = new Map<string, ServiceAccount | 'application-default'>()
  for (const entry of given.split(',')) {
    const [, name = 'default', file] = /^(?:([\w-]+)=)?(.+)$/.exec(entry.trim()) ?? []
    if (file === undefined) throw new ConfigError('FIREBASE_CREDENTIALS has an empty entry. It is a file, or name=file,name=file.')
    if (accounts.has(name)) throw new ConfigError(`FIREBASE_CREDENTIALS has two projects named ${name}. Name each: name=file,name=file.`)
    accounts.set(name, file === 'application-default' ? file : accountOf(parse(read(file), `${file} of FIREBASE_CREDENTIALS`), file))
  }
  return accounts
}

/** What is no path must not be repeated in an error: it may be the key. */
const LOOKS_ENCODED = /^[\w+/=\s-]{200,}$/

function read(file: string): string {
  try {
    return readFileSync(file, 'utf8')
  } catch (error) {
    const { code } = error as { code?: string }
    throw new ConfigError(
      `FIREBASE_CREDENTIALS names the file ${file}, which cannot be read (${code}). Correct the path, or give the JSON itself.`,
    )
  }
}

function parse(text: string, where: string): Record<string, unknown> {
  try {
    return JSON.parse(text) as Record<string, unknown>
  } catch {
    throw new ConfigError(`${where} is not valid JSON. Download the key of the service account again (Firebase console, Service accounts).`)
  }
}

function accountOf(json: unknown, where: string): ServiceAccount {
  const { project_id, client_email, private_key } = (json ?? {}) as Record<string, unknown>
  if (typeof project_id === 'string' && typeof client_email === 'string' && typeof private_key === 'string')
    return { projectId: project_id, clientEmail: client_email, privateKey: private_key }
  throw new ConfigError(`${where} is not the key of a service account: it needs project_id, client_email and private_key.`)
}
