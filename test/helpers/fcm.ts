import { generateKeyPairSync } from 'node:crypto'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import type { IncomingMessage, ServerResponse } from 'node:http'
import { createServer } from 'node:https'
import type { AddressInfo } from 'node:net'
import { makeCertificate } from './certificate.js'
import { redirectGoogle } from './google-redirect.js'

interface Teardown {
  teardown(end: () => unknown): void
}

export type Answer = { status: number; headers?: Record<string, string>; body?: unknown } | 'hang' | 'reset'

export interface Sent {
  project: string
  token: string
  /** What the device would get. */
  message: any
  at: number
}

/** A stand-in for FCM and for Google's token endpoint, over TLS; what is sent to Google by this process goes there. */
export interface Fcm {
  /** Everything that came, answered or not. */
  sent: Sent[]
  /** How the nth sending to this token (from 1) is answered; by default it is accepted. */
  answer(token: string, answers: (nth: number) => Answer): void
  to(token: string): Sent[]
  /** Google's token endpoint does not answer the next request. */
  hangNextAccessToken(): void
  hangsLeft(): number
  /** Resolves once `count` sendings to the token came. */
  came(token: string, count?: number): Promise<Sent[]>
  /** Settings that turn pushes on, for a service of this process. */
  settings: Record<string, string>
  /** The same and more, for a service that is a process of its own. */
  processSettings: Record<string, string>
}

/** The first is the default. What happens to one is no concern of the others. */
export const PROJECTS = ['main', 'other', ...Array.from({ length: 12 }, (_, i) => `p${i}`)]
export const ACCEPTED: Answer = { status: 200, body: { name: 'projects/p/messages/1' } }
const FCM_ERROR = 'type.googleapis.com/google.firebase.fcm.v1.FcmError'
export const refusal = (
  status: number,
  code: string,
  errorCode?: string,
  more: object = {},
  headers: Record<string, string> = {},
): Answer => ({
  status,
  headers,
  body: {
    error: {
      code: status,
      message: 'as FCM says it',
      status: code,
      details: errorCode ? [{ '@type': FCM_ERROR, errorCode }] : [],
      ...more,
    },
  },
})
export const UNREGISTERED = refusal(404, 'NOT_FOUND', 'UNREGISTERED')

export async function startFcm(t: Teardown): Promise<Fcm> {
  const names = ['fcm.googleapis.com', 'oauth2.googleapis.com', 'www.googleapis.com']
  const { key, certificate } = makeCertificate(t, names)
  const sent: Sent[] = []
  const answers = new Map<string, (nth: number) => Answer>()
  const watchers = new Set<() => void>()
  let hangs = 0

  const server = createServer({ key: readFileSync(key), cert: readFileSync(certificate) }, (request, response) => {
    void receive(request, response)
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  const undo = redirectGoogle({ port, certificate })
  t.teardown(() => {
    undo()
    server.closeAllConnections()
    server.close()
  })

  async function receive(request: IncomingMessage, response: ServerResponse): Promise<void> {
    let text = ''
    for await (const chunk of request) text += chunk
    const reply = (status: number, body: unknown, headers: Record<string, string> = {}) =>
      response
        .writeHead(status, { 'content-type': typeof body === 'string' ? 'text/html' : 'application/json', ...headers })
        .end(typeof body === 'string' ? body : JSON.stringify(body))
    const [, project] = /^\/v1\/projects\/([^/]+)\/messages:send$/.exec(request.url ?? '') ?? []
    if (project === undefined && hangs > 0) return void hangs--
    if (project === undefined) return void reply(200, { access_token: 'access', expires_in: 3_600, token_type: 'Bearer' })
    const { message } = JSON.parse(text)
    sent.push({ project, token: message.token, message, at: performance.now() })
    const answer = answers.get(message.token)?.(to(message.token).length) ?? ACCEPTED
    for (const watch of [...watchers]) watch()
    if (answer === 'hang') return
    if (answer === 'reset') return void request.socket.destroy()
    reply(answer.status, answer.body ?? '', answer.headers)
  }

  const to = (token: string) => sent.filter((push) => push.token === token)
  const { privateKey } = generateKeyPairSync('rsa', { modulusLength: 2048 })
  const account = (projectId: string) => ({
    type: 'service_account',
    project_id: projectId,
    client_email: `service@${projectId}.example`,
    private_key: privateKey.export({ type: 'pkcs8', format: 'pem' }),
  })
  const FIREBASE_CREDENTIALS = JSON.stringify(Object.fromEntries(PROJECTS.map((name) => [name, account(`${name}-project`)])))

  return {
    sent,
    to,
    hangNextAccessToken: () => void (hangs = 1),
    hangsLeft: () => hangs,
    answer: (token, nth) => void answers.set(token, nth),
    came(token, count = 1) {
      return new Promise((resolve, reject) => {
        const timer = setTimeout(() => {
          watchers.delete(watch)
          reject(new Error(`${to(token).length} of ${count} pushes came to ${token} within 20 s`))
        }, 20_000)
        const watch = () => {
          if (to(token).length < count) return
          clearTimeout(timer)
          watchers.delete(watch)
          resolve(to(token))
        }
        watchers.add(watch)
        watch()
      })
    },
    settings: { FIREBASE_CREDENTIALS },
    processSettings: { FIREBASE_CREDENTIALS, GOOGLE_REDIRECT: JSON.stringify({ port, certificate }) },
  }
}
