import { createHmac } from 'node:crypto'
import type { App, Credential } from 'firebase-admin/app'
import type { Message } from 'firebase-admin/messaging'
import type { PushOutcome, PushSender, PushToken } from '../../src/ports.js'
import { OneAttemptAgent, type Refusal } from './one-attempt-agent.js'
import { readCredentials } from './credentials.js'

/** Names on the device: a later push replaces one that was not seen yet. */
const COLLAPSE_KEY = 'message-pickup'
/** FCM asks for this when it says "too many" without saying for how long. */
const THROTTLED_MS = 60_000
const MAX_SOCKETS = 64
const MAX_RETRY_AFTER_MS = 3_600_000

export interface FcmOptions {
  /** FIREBASE_CREDENTIALS */
  credentials: string
  title: string
  body: string
  dataOnly: boolean
  tagSecret?: string
  timeoutMs: number
}

/**
 * Firebase Cloud Messaging by firebase-admin, which is loaded here and nowhere else: it costs 200 ms and 15 MB.
 * A push carries the configured text and, if the operator wants it, an opaque tag; never a payload, a DID or a connectionId.
 * @throws Error with a sentence for the operator when the credentials cannot be used
 */
export async function createFcmSender({
  credentials,
  title,
  body,
  dataOnly,
  tagSecret,
  timeoutMs,
}: FcmOptions): Promise<PushSender & { close(): Promise<void> }> {
  const { applicationDefault, cert, deleteApp, initializeApp } = await import('firebase-admin/app')
  const { getMessaging } = await import('firebase-admin/messaging')
  const agent = new OneAttemptAgent({ keepAlive: true, maxSockets: MAX_SOCKETS, timeoutMs })
  const apps = new Map<string, App>()
  const accounts = readCredentials(credentials)
  for (const [name, account] of accounts) {
    const make = () => (account === 'application-default' ? applicationDefault(agent) : cert(account, agent))
    const credential = withDeadline(make, timeoutMs)
    apps.set(
      name,
      initializeApp(
        { credential, httpAgent: agent, projectId: account === 'application-default' ? undefined : account.projectId },
        `mpr-${process.pid}-${++made}`,
      ),
    )
  }
  const [defaultName] = apps.keys()

  return { projects: [...apps.keys()], refuses, send, close }

  function refuses({ type, project }: PushToken): string | undefined {
    if (type !== 'fcm') return `There is no push service of type ${JSON.stringify(type.slice(0, 32))} here, only fcm.`
    if (project !== undefined && !apps.has(project))
      return `There is no project ${JSON.stringify(project.slice(0, 64))} here. There is: ${[...apps.keys()].join(', ')}.`
    return undefined
  }

  async function send({ project, token }: PushToken, connectionId: string): Promise<PushOutcome> {
    const messaging = getMessaging(apps.get(project ?? defaultName!))
    try {
      const answer = await agent.attempt(() => messaging.send(messageFor(token, connectionId)))
      if (answer === 'timeout') return { kind: 'failed', reason: `FCM did not answer within ${timeoutMs} ms`, everybody: true }
      return typeof answer === 'string' ? { kind: 'accepted' } : understand({ ...answer, body: answer.body.replaceAll(token, '…') })
    } catch (error) {
      // No answer of FCM's: the network, the token endpoint, or a page that is not JSON. All of it may pass.
      return { kind: 'failed', reason: describe(error), everybody: true }
    }
  }

  function messageFor(token: string, connectionId: string): Message {
    const tag = tagSecret === undefined ? undefined : createHmac('sha256', tagSecret).update(connectionId).digest('base64url').slice(0, 22)
    return {
      token,
      ...(dataOnly ? {} : { notification: { title, body } }),
      data: { event: 'message-pickup', ...(tag === undefined ? {} : { tag }) },
      android: { priority: 'high', collapseKey: COLLAPSE_KEY },
      apns: {
        headers: {
          'apns-push-type': dataOnly ? 'background' : 'alert',
          'apns-priority': dataOnly ? '5' : '10',
          'apns-collapse-id': COLLAPSE_KEY,
        },
        payload: { aps: dataOnly ? { contentAvailable: true } : { contentAvailable: true, sound: 'default' } },
      },
    }
  }

  async function close(): Promise<void> {
    agent.destroy()
    await Promise.all([...apps.values()].map((app) => deleteApp(app)))
  }
}

/**
 * A credential whose access token is waited for no longer than a push is. The SDK has no time-out for it and hands a request that hangs to
 * every later caller, and so does the library below it: after a time-out both are given up for a new one.
 */
function withDeadline(make: () => Credential, timeoutMs: number): Credential {
  let current = make()
  // What the SDK asks of its own classes (a project id) it still finds.
  return Object.assign(Object.create(current) as Credential, {
    async getAccessToken() {
      let timer: NodeJS.Timeout | undefined
      const deadline = new Promise<never>((_resolve, reject) => {
        timer = setTimeout(() => {
          current = make()
          reject(new Error(`no access token within ${timeoutMs} ms`))
        }, timeoutMs)
      })
      return Promise.race([current.getAccessToken(), deadline]).finally(() => clearTimeout(timer))
    },
  })
}

/** Names of apps are global in the SDK, and a test has several services in a process. */
let made = 0

/** @see https://firebase.google.com/docs/reference/fcm/rest/v1/ErrorCode */
export function understand({ status, retryAfter, body }: Refusal): PushOutcome {
  const { errorCode, message, fields } = readError(body)
  const reason = `FCM answered ${status}${errorCode ? ` ${errorCode}` : ''}${message ? `: ${message}` : ''}`
  const retryAfterMs = parseRetryAfter(retryAfter)
  if (errorCode === 'UNREGISTERED')
    return { kind: 'dead', reason: 'FCM: the app was uninstalled or the token has been replaced (UNREGISTERED)' }
  if (errorCode === 'SENDER_ID_MISMATCH')
    return { kind: 'dead', reason: 'FCM: the token belongs to another Firebase project (SENDER_ID_MISMATCH)' }
  if (status === 400) {
    const isToken = fields.includes('message.token') || /registration token/i.test(message)
    return isToken ? { kind: 'dead', reason: 'FCM: this is not a registration token (INVALID_ARGUMENT)' } : { kind: 'rejected', reason }
  }
  if (status === 429) return { kind: 'failed', reason, everybody: true, retryAfterMs: retryAfterMs ?? THROTTLED_MS }
  // The key of APNs in the Firebase project: nobody with an iPhone can be reached, everybody else can.
  if (errorCode === 'THIRD_PARTY_AUTH_ERROR') return { kind: 'failed', reason, everybody: false }
  // Also 401, 403 and 404 without one of the codes above: our credentials or the project are wrong, not the token.
  return { kind: 'failed', reason, everybody: true, ...(retryAfterMs === undefined ? {} : { retryAfterMs }) }
}

/** The same for a person who checks the configuration. */
export function understandable(outcome: PushOutcome): string {
  switch (outcome.kind) {
    case 'accepted':
      return 'FCM took it: the credentials are right, and the phone should show it now. If it does not, look at the app (permission to notify, its Firebase project, for iOS the APNs key in the Firebase console).'
    case 'dead':
      return `The credentials are right, but not this token. ${outcome.reason}. The service would drop it.`
    case 'rejected':
      return `The credentials are right, but FCM does not take what is in the push. ${outcome.reason}. Look at PUSH_TITLE and PUSH_BODY.`
    case 'failed':
      return `It was not sent. ${outcome.reason}. ${remedyFor(outcome.reason)} The service would try again, and keep the message meanwhile.`
  }
}

function remedyFor(reason: string): string {
  if (reason.includes('THIRD_PARTY_AUTH_ERROR'))
    return 'Check the APNs key of the app in the Firebase console: it is missing, wrong or has expired.'
  if (/answered 40[13]/.test(reason))
    return 'Check that the Firebase Cloud Messaging API is enabled in the project, and that the service account may send messages (role Firebase Cloud Messaging API Admin).'
  if (/answered 404/.test(reason)) return 'Check the project_id in the credentials.'
  if (/answered (429|5\d\d)/.test(reason)) return 'FCM is busy or down: try again later.'
  if (/credential|access token|invalid_grant/i.test(reason))
    return 'Google does not accept the key of the service account: it may have been deleted, or the clock of this machine is wrong.'
  return 'Check that this machine reaches fcm.googleapis.com and oauth2.googleapis.com (port 443).'
}

function readError(body: string): { errorCode: string; message: string; fields: string[] } {
  const none = { errorCode: '', message: '', fields: [] }
  try {
    const { error } = JSON.parse(body) as { error?: { status?: unknown; message?: unknown; details?: unknown } }
    if (typeof error !== 'object' || error === null) return none
    const details = (Array.isArray(error.details) ? error.details : []) as { errorCode?: unknown; fieldViolations?: unknown }[]
    const violations = details.flatMap(({ fieldViolations }) =>
      Array.isArray(fieldViolations) ? (fieldViolations as { field?: unknown }[]) : [],
    )
    const code = details.find(({ errorCode }) => typeof errorCode === 'string')?.errorCode ?? error.status
    return {
      errorCode: typeof code === 'string' ? code.slice(0, 64) : '',
      message: typeof error.message === 'string' ? error.message.slice(0, 300) : '',
      fields: violations.map(({ field }) => String(field)),
    }
  } catch {
    return none // a page of a proxy
  }
}

/** [RFC 9110 10.2.3] Seconds, or a date. */
export function parseRetryAfter(text: string | undefined, now = Date.now()): number | undefined {
  if (text === undefined) return undefined
  const ms = /^\d+$/.test(text.trim()) ? Number(text) * 1_000 : Date.parse(text) - now
  return Number.isFinite(ms) && ms > 0 ? Math.min(ms, MAX_RETRY_AFTER_MS) : undefined
}

/** The SDK's texts may contain whole answers. */
function describe(error: unknown): string {
  const { message } = error as Error
  return `FCM could not be reached: ${message.split('Raw server response')[0]!.trim().slice(0, 300)}`
}
