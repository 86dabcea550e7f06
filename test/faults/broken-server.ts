import { randomUUID } from 'node:crypto'
import Fastify from 'fastify'
import app, { serverOptions } from '../../app.js'
import { readConfig } from '../../src/config.js'
import type { MessageStore, PubSub, SessionDirectory } from '../../src/ports.js'

/*
 * The service with one promise broken, for the test of the checker: BROKEN says which. Its ports are wrapped as the plugins decorate
 * them, so everything else is the service as it is.
 */

interface Ports {
  store: MessageStore
  sessions: SessionDirectory
  pubsub: PubSub
}

type Breaks = { [Name in keyof Ports]?: (port: Ports[Name]) => Ports[Name] }

const COMMIT_LATER_MS = 300

const variants: Record<string, Breaks> = {
  sound: {},
  'answers before the commit': {
    store: (store) => ({
      ...store,
      add(message, told) {
        setTimeout(() => store.add(message, () => {}), COMMIT_LATER_MS)
        process.nextTick(told, { id: randomUUID() })
      },
    }),
  },
  'drops publishes and has no reconciler': {
    pubsub: (pubsub) => ({
      ...pubsub,
      publish(connectionId) {
        if (Math.random() < 0.7) pubsub.publish(connectionId)
      },
    }),
    sessions: (sessions) => ({ ...sessions, waiting: async () => [] }),
  },
  'lets a late remove end the session of another': {
    sessions: (sessions) => ({ ...sessions, close: ({ connectionId }) => sessions.close({ connectionId }) }),
  },
  'keeps in flight what an ended session had': {
    store(store) {
      const given = new Set<string>()
      const onlyNew = <Message extends { id: string }>(messages: Message[]) => messages.filter(({ id }) => !given.has(id) && given.add(id))
      return {
        ...store,
        take: async (take) => onlyNew(await store.take(take)),
        async claim(claim) {
          const { messages, ...rest } = await store.claim(claim)
          return { ...rest, messages: onlyNew(messages) }
        },
      }
    },
  },
}

const breaks = variants[process.env.BROKEN!]
if (!breaks) throw new Error(`BROKEN must be one of: ${Object.keys(variants).join(', ')}`)

const config = readConfig(process.env)
const fastify = Fastify(serverOptions(config))
fastify.addHook('onRegister', (instance) => {
  const decorate = instance.decorate.bind(instance) as (name: string, value: unknown) => typeof instance
  instance.decorate = ((name: string, value: unknown) => {
    const wrap = breaks[name as keyof Ports] as ((port: unknown) => unknown) | undefined
    return decorate(name, wrap ? wrap(value) : value)
  }) as typeof instance.decorate
})
await fastify.register(app, { config })
await fastify.listen({ host: config.HOST, port: config.PORT })
const { port } = fastify.server.address() as { port: number }
fastify.log.info({ api: `http://127.0.0.1:${port}/v1` }, 'ready')
