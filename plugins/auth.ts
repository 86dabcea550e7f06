import { unwatchFile, watchFile } from 'node:fs'
import { readFile } from 'node:fs/promises'
import type { IncomingMessage } from 'node:http'
import fastifyRateLimit from '@fastify/rate-limit'
import type { FastifyReply, FastifyRequest } from 'fastify'
import fp from 'fastify-plugin'
import type { WebSocket } from 'ws'
import { findKey, isAllowed, isAllowedOrigin, isKnownHost, isLoopback, parseApiKeys, type Access, type ApiKey } from '../src/access.js'
import { ConfigError, hasApiKeys, originList, type Config } from '../src/config.js'
import { CallError } from '../src/errors.js'
import { closeSocket } from './websocket.js'

declare module 'fastify' {
  interface FastifyContextConfig {
    /** What the route asks for. A route that says nothing asks for a key with the scope `mediator`. */
    access?: Access
  }
  interface FastifyRequest {
    /** Whose requests are counted together: a key, or an address where there are no keys. */
    client: string
  }
  interface FastifyInstance {
    auth: {
      /** Reads API_KEYS_FILE again. What cannot be understood changes nothing. */
      reload(): Promise<void>
    }
  }
}

/** [RFC 6455 7.4.1] Policy violation. */
const POLICY_VIOLATION = 1008
const WATCH_INTERVAL_MS = 1_000
const MINUTE_MS = 60_000

/**
 * The door. Every request passes it before anything else looks at it, and a WebSocket before its upgrade: the host and origin it
 * comes by, then its key, then how often it comes. A socket whose key is revoked is closed.
 *
 * Keys are never taken from the query: URLs end in logs.
 */
export default fp<{ config: Config }>(
  async (app, { config }) => {
    const origins = originList(config.ALLOWED_ORIGINS)
    const hasKeys = hasApiKeys(config)
    const guardsHost = !hasKeys && isLoopback(config.HOST)
    let keys = await readKeys(config)

    await app.register(fastifyRateLimit, { global: false })
    const countFailure = app.createRateLimit({ max: config.MAX_FAILED_KEYS_PER_MINUTE, timeWindow: MINUTE_MS })
    const countRequest = app.createRateLimit({
      max: config.RATE_LIMIT_REQUESTS_PER_SECOND,
      timeWindow: 1_000,
      keyGenerator: (request) => request.client,
    })

    app.decorateRequest('client', '')
    app.addHook('onRequest', async (request, reply) => {
      if (isUpgrade(request)) reply.header('connection', 'close') // which @fastify/websocket does after a refusal, without a word
      if (guardsHost && request.headers.host !== undefined && !isKnownHost(request.headers.host, origins)) {
        throw new CallError('forbidden', 'This name is not ours. Call 127.0.0.1 or localhost, or add the origin to ALLOWED_ORIGINS.', {
          field: 'host',
        })
      }
      if (request.headers.origin !== undefined && checkOrigin(request.headers.origin, request, reply)) return reply
      const access = accessOf(request)
      const key = await checkKey(access, request, reply)
      request.client = key ? `key ${key.name}` : `address ${request.ip}`
      if (config.RATE_LIMIT_REQUESTS_PER_SECOND > 0 && access !== 'open') await limitRequests(request, reply)
    })

    /** @returns true when this was a browser's question whether it may call (preflight), which is answered. */
    function checkOrigin(origin: string, request: FastifyRequest, reply: FastifyReply): boolean {
      if (!isAllowedOrigin(origin.toLowerCase(), request.host, origins)) {
        throw new CallError('forbidden', 'Pages of this origin may not call (ALLOWED_ORIGINS).', { field: 'origin' })
      }
      if (!origins.includes(origin.toLowerCase())) return false // our own page
      reply.headers({ 'access-control-allow-origin': origin, vary: 'origin' })
      if (request.method !== 'OPTIONS') return false
      void reply
        .code(204)
        .headers({
          'access-control-allow-methods': 'GET, POST, PUT, DELETE',
          'access-control-allow-headers': 'authorization, content-type',
        })
        .send()
      return true
    }

    async function checkKey(access: Access, request: FastifyRequest, reply: FastifyReply): Promise<ApiKey | undefined> {
      if (!hasKeys || access === 'open') return undefined
      const key = findKey(keys, request.headers.authorization)
      if (!key) {
        const { isExceeded, ttlInSeconds } = { isExceeded: false, ttlInSeconds: 0, ...(await countFailure(request)) }
        // Only what fails is refused: whoever shares the address, behind one proxy, still gets in with a good key.
        if (isExceeded) throw tooMany(reply, ttlInSeconds, 'Too many requests without a good key from this address.')
        app.log.info({ address: request.ip, given: request.headers.authorization !== undefined }, 'a request without a good key')
        // A browser asks its user on Basic: only where a person comes, so that no page can make it ask.
        reply.header('www-authenticate', `${access === 'any key' ? 'Basic' : 'Bearer'} realm="message-pickup-repository"`)
        throw new CallError('unauthorized', 'A valid API key is needed, as "Authorization: Bearer" or "Basic".')
      }
      if (!isAllowed(key, access)) throw new CallError('forbidden', `This API key has not the scope "${access}".`)
      if (isUpgrade(request)) comingIn.set(request.raw, key)
      return key
    }

    async function limitRequests(request: FastifyRequest, reply: FastifyReply): Promise<void> {
      const { isExceeded, ttlInSeconds } = { isExceeded: false, ttlInSeconds: 0, ...(await countRequest(request)) }
      if (isExceeded) throw tooMany(reply, ttlInSeconds, 'Too many requests a second (RATE_LIMIT_REQUESTS_PER_SECOND).')
    }

    const comingIn = new WeakMap<IncomingMessage, ApiKey>()
    const sockets = new Map<WebSocket, ApiKey>()
    app.websocketServer.on('connection', (socket: WebSocket, request: IncomingMessage) => {
      const key = comingIn.get(request)
      if (!key) return
      sockets.set(socket, key)
      socket.once('close', () => sockets.delete(socket))
      if (!isStillGood(key)) revoke(socket) // since the door
    })

    function isStillGood({ name, digest, scopes }: ApiKey): boolean {
      return keys.some((key) => key.name === name && key.digest.equals(digest) && String(key.scopes) === String(scopes))
    }

    function revoke(socket: WebSocket): void {
      void closeSocket(socket, POLICY_VIOLATION, 'the API key was revoked')
    }

    async function reload(): Promise<void> {
      try {
        keys = await readKeys(config)
      } catch (err) {
        return app.log.error({ err }, 'the API keys could not be read again, the former ones stay')
      }
      const revoked = [...sockets].filter(([, key]) => !isStillGood(key))
      for (const [socket] of revoked) revoke(socket)
      app.log.info({ keys: keys.map(({ name }) => name), closedSockets: revoked.length }, 'the API keys were read again')
    }

    app.decorate('auth', { reload })
    const file = config.API_KEYS_FILE
    if (file === undefined) return
    // By polling: an editor, a mounted Kubernetes secret and a bind mount replace files in ways that inotify does not see.
    const onChange = () => void reload()
    watchFile(file, { interval: WATCH_INTERVAL_MS, persistent: false }, onChange)
    process.on('SIGHUP', onChange)
    app.addHook('onClose', async () => {
      unwatchFile(file, onChange)
      process.off('SIGHUP', onChange)
    })
  },
  { name: 'auth', dependencies: ['websocket'] },
)

/** A socket makes calls, whatever else is on its route. What does not exist says so to whoever has a key. */
function accessOf(request: FastifyRequest): Access {
  if (isUpgrade(request)) return 'mediator'
  return request.is404 ? 'any key' : (request.routeOptions.config.access ?? 'mediator')
}

function isUpgrade(request: FastifyRequest): boolean {
  return request.headers.upgrade !== undefined
}

function tooMany(reply: FastifyReply, seconds: number, text: string): CallError {
  reply.header('retry-after', seconds)
  return new CallError('rate_limited', text)
}

/** @throws ConfigError with a sentence for the operator; a file without a key is more likely half written than meant. */
async function readKeys(config: Config): Promise<ApiKey[]> {
  const given = parseApiKeys(config.API_KEYS ?? '') // its faults were reported with the configuration's
  if (config.API_KEYS_FILE === undefined) return given.keys
  let text
  try {
    text = await readFile(config.API_KEYS_FILE, 'utf8')
  } catch (error) {
    throw new ConfigError(`API_KEYS_FILE cannot be read: ${(error as Error).message}`, { cause: error })
  }
  const { keys, faults } = parseApiKeys(text)
  if (faults.length > 0) throw new ConfigError(`API_KEYS_FILE (${config.API_KEYS_FILE}): ${faults.join('; ')}.`)
  if (keys.length === 0) throw new ConfigError(`API_KEYS_FILE (${config.API_KEYS_FILE}) has no key in it.`)
  return [...given.keys, ...keys]
}
