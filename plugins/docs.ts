import swagger from '@fastify/swagger'
import swaggerUi from '@fastify/swagger-ui'
import fp from 'fastify-plugin'
import { hasApiKeys, type Config } from '../src/config.js'

/** OpenAPI 3.1 from the schemas of the routes, and Swagger UI on /docs that can execute them. */
export default fp<{ config: Config }>(
  async (app, { config }) => {
    const hasKeys = hasApiKeys(config)
    await app.register(swagger, {
      openapi: {
        openapi: '3.1.0',
        info: {
          title: 'Message Pickup Repository',
          version: app.pickup.version,
          description:
            'The queue that a fleet of DIDComm mediators shares. The same operations are JSON-RPC 2.0 over WebSocket on `/ws` and on `/`, where live sessions receive `messagesReceived`; `rpc.discover` describes them.',
        },
        tags: [
          { name: 'messages', description: 'The queue of a connection' },
          { name: 'live sessions', description: 'Which connection can be delivered to now' },
          { name: 'pushes', description: 'Where to wake a wallet that has no live session' },
          { name: 'administration', description: 'For the operator, with the scope `admin`; not over WebSocket' },
          { name: 'service', description: 'For probes, load balancers and Prometheus' },
        ],
        ...(hasKeys && {
          security: [{ bearer: [] }, { basic: [] }],
          components: { securitySchemes: { bearer: { type: 'http', scheme: 'bearer' }, basic: { type: 'http', scheme: 'basic' } } },
        }),
      },
    })
    await app.register(async (docs) => {
      docs.addHook('onRoute', (route) => {
        route.config = { ...route.config, access: config.OPEN_DOCS ? 'open' : 'any key' }
      })
      await docs.register(swaggerUi, {
        routePrefix: '/docs',
        uiConfig: { tryItOutEnabled: true, displayRequestDuration: true, displayOperationId: true },
      })
    })
  },
  { name: 'docs', dependencies: ['pickup'] },
)
