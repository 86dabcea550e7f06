import { Type } from '@sinclair/typebox'
import type { FastifyInstance } from 'fastify'

/** For probes: /health says that the process is alive, /ready that it can serve. */
export default async function healthRoutes(app: FastifyInstance): Promise<void> {
  app.get(
    '/health',
    {
      config: { access: 'open' },
      schema: { tags: ['service'], summary: 'Alive', response: { 200: Type.Object({ status: Type.Literal('ok') }) } },
    },
    async () => ({ status: 'ok' }),
  )

  const readiness = Type.Object({
    status: Type.Union([Type.Literal('ready'), Type.Literal('degraded'), Type.Literal('not ready')], {
      description: 'degraded: it serves, but messages of other instances are delivered with a delay of some seconds.',
    }),
    checks: Type.Record(Type.String(), Type.Boolean(), { description: 'Whether each thing that the service stands on answers.' }),
  })
  app.get(
    '/ready',
    {
      config: { access: 'open' },
      schema: { tags: ['service'], summary: 'Ready to serve', response: { 200: readiness, 503: readiness } },
    },
    async (_request, reply) => {
      const checks = await app.pickup.readiness()
      const status = !checks.store ? 'not ready' : checks.pubsub ? 'ready' : 'degraded'
      return reply.code(checks.store ? 200 : 503).send({ status, checks })
    },
  )
}
