import { Type } from '@sinclair/typebox'
import type { FastifyInstance } from 'fastify'

/** For probes: /health says that the process is alive, /ready that it can serve. */
export default async function healthRoutes(app: FastifyInstance): Promise<void> {
  app.get(
    '/health',
    { schema: { tags: ['service'], summary: 'Alive', response: { 200: Type.Object({ status: Type.Literal('ok') }) } } },
    async () => ({ status: 'ok' }),
  )

  const readiness = Type.Object({
    status: Type.Union([Type.Literal('ready'), Type.Literal('not ready')]),
    checks: Type.Record(Type.String(), Type.Boolean(), { description: 'Whether each thing that the service stands on answers.' }),
  })
  app.get(
    '/ready',
    { schema: { tags: ['service'], summary: 'Ready to serve', response: { 200: readiness, 503: readiness } } },
    async (_request, reply) => {
      const checks = await app.pickup.readiness()
      const ready = Object.values(checks).every(Boolean)
      return reply.code(ready ? 200 : 503).send({ status: ready ? 'ready' : 'not ready', checks })
    },
  )
}
