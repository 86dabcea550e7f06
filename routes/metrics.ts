import { Type } from '@sinclair/typebox'
import type { FastifyInstance } from 'fastify'

/** For Prometheus. */
export default async function metricsRoutes(app: FastifyInstance): Promise<void> {
  app.get(
    '/metrics',
    {
      config: { access: 'admin' },
      schema: {
        tags: ['service'],
        summary: 'Metrics',
        response: { 200: Type.String({ description: 'In the text format of Prometheus.' }) },
      },
    },
    async (_request, reply) =>
      reply
        .header('content-type', app.metrics.registry.contentType)
        .serializer((text: string) => text)
        .send(await app.metrics.text()),
  )
}
