import {
  LogController,
  type FastifyError,
  type FastifyInstance,
  type FastifyReply,
  type FastifyRequest,
  type FastifyServerOptions,
} from 'fastify'
import auth from './plugins/auth.js'
import docs from './plugins/docs.js'
import janitor from './plugins/janitor.js'
import metrics from './plugins/metrics.js'
import pickup from './plugins/pickup.js'
import pubsub from './plugins/pubsub/index.js'
import push from './plugins/push/index.js'
import storage from './plugins/storage/index.js'
import websocket from './plugins/websocket.js'
import healthRoutes from './routes/health.js'
import metricsRoutes from './routes/metrics.js'
import restRoutes from './routes/rest.js'
import rpcRoutes from './routes/rpc.js'
import type { Config } from './src/config.js'
import { CallError, toCallError } from './src/errors.js'

/** The service as one Fastify plugin: what it stands on, then how one reaches it. */
export default async function app(fastify: FastifyInstance, { config }: { config: Config }): Promise<void> {
  fastify.setErrorHandler<FastifyError>((error, request, reply) => {
    const answer = httpError(error, config)
    if (answer.code === 'internal_error') request.log.error({ err: error, route: request.routeOptions.url }, 'request failed')
    return reply
      .code(answer.status)
      .header('content-type', 'application/json; charset=utf-8')
      .serializer(JSON.stringify)
      .send({ error: answer.toObject() })
  })
  fastify.setNotFoundHandler((_request, reply) => {
    const answer = new CallError('method_not_found', 'There is nothing here. /docs shows what there is.')
    return reply.code(answer.status).send({ error: answer.toObject() })
  })

  await fastify.register(metrics)
  await fastify.register(storage, { config })
  await fastify.register(pubsub, { config })
  await fastify.register(push, { config })
  await fastify.register(pickup, { config })
  await fastify.register(janitor, { config })
  await fastify.register(websocket, { config })
  await fastify.register(auth, { config })
  await fastify.register(docs, { config })

  await fastify.register(healthRoutes)
  await fastify.register(metricsRoutes)
  await fastify.register(rpcRoutes)
  await fastify.register(restRoutes, { prefix: '/v1' })
}

/** What Fastify has to be told before there is a plugin: limits of HTTP, and what a log line may contain. */
export function serverOptions(config: Config) {
  return {
    logger: { level: config.LOG_LEVEL, serializers: { err: loggableError } },
    logController: new LogController({ disableRequestLogging: true }), // its lines carry URLs, and URLs carry DIDs
    bodyLimit: config.limits.maxFrameBytes,
    keepAliveTimeout: 65_000, // longer than a load balancer's usual 60 s, so that it is not us who close under its request
    requestTimeout: 10_000, // 0 by default: a body that trickles in would hold its connection for ever
    http: {
      headersTimeout: 5_000,
      connectionsCheckingInterval: 1_000,
      maxHeaderSize: 16_384 + 2 * config.limits.maxDidLength, // a DID can be a query parameter
    },
    trustProxy: config.TRUSTED_PROXIES ?? false,
    routerOptions: { maxParamLength: 12 * config.limits.maxConnectionIdLength }, // percent-encoded
    // The router's own refusals, before there is a route.
    frameworkErrors: (error: FastifyError, _request: FastifyRequest, reply: FastifyReply) => {
      const answer = httpError(error, config)
      void reply.code(answer.status).send({ error: answer.toObject() })
    },
    pluginTimeout: 120_000, // a database may take this long to recover
  } satisfies FastifyServerOptions & Record<string, unknown>
}

/** Fastify's own refusals in the words of the error table. */
function httpError(error: FastifyError, { limits }: Config): CallError {
  switch (error.statusCode) {
    case 400:
      return new CallError('invalid_request', error.message)
    case 413:
      return new CallError('payload_too_large', `The body must be at most ${limits.maxFrameBytes} bytes.`, {
        field: 'body',
        limit: limits.maxFrameBytes,
      })
    case 414: {
      const limit = limits.maxConnectionIdLength
      return new CallError('invalid_params', `Invalid params: connectionId must be at most ${limit} characters long.`, {
        field: 'connectionId',
        limit,
      })
    }
    case 415:
      return new CallError('invalid_request', 'The body must be JSON, with content-type: application/json.', { field: 'content-type' })
    default:
      return toCallError(error)
  }
}

/** Postgres puts values of rows into `detail` and `where`; they stay out of the log. */
function loggableError(error: Error & { code?: unknown }): {
  type: string
  message: string
  stack: string
  code?: unknown
  cause?: unknown
} {
  return {
    type: error.name,
    message: error.message,
    stack: error.stack ?? '',
    ...(error.code === undefined ? {} : { code: error.code }),
    ...(error.cause instanceof Error ? { cause: loggableError(error.cause) } : {}),
  }
}
