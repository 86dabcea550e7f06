import { readFileSync } from 'node:fs'
import { Agent } from 'node:https'
import type { TlsOptions } from 'node:tls'

/**
 * Leads whatever this process sends to *.googleapis.com to a server on this machine, as a hosts file and a private authority would:
 * the service and firebase-admin run as they are. Loaded into a server process by `--import`, with where to go in GOOGLE_REDIRECT.
 */
export function redirectGoogle({ port, certificate }: { port: number; certificate: string }): () => void {
  const prototype = Agent.prototype as unknown as { createConnection(this: Agent, options: Options, done: unknown): unknown }
  const original = prototype.createConnection
  const ca = readFileSync(certificate)
  prototype.createConnection = function (options, done) {
    const isGoogle = /\.googleapis\.com$/.test(String(options.host))
    return original.call(this, isGoogle ? { ...options, host: '127.0.0.1', port, servername: String(options.host), ca } : options, done)
  }
  return () => (prototype.createConnection = original)
}

type Options = TlsOptions & { host?: string; port?: number; servername?: string }

if (process.env.GOOGLE_REDIRECT) redirectGoogle(JSON.parse(process.env.GOOGLE_REDIRECT) as { port: number; certificate: string })
