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
    return new Map(Object.entries(json).map(([name, account]) => [name, accountOf(account, `project ${name} of FIREBASE_CREDENTIALS`)]))
  }
  return new Map(
    given.split(',').map((entry) => {
      const [, name = 'default', file] = /^(?:([\w-]+)=)?(.+)$/.exec(entry.trim()) ?? []
      if (file === undefined) throw new ConfigError('FIREBASE_CREDENTIALS has an empty entry. It is a file, or name=file,name=file.')
      return [name, file === 'application-default' ? file : accountOf(parse(read(file), `${file} of FIREBASE_CREDENTIALS`), file)]
    }),
  )
}

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
