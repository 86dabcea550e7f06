import type { PubSub } from '../../src/ports.js'
import { createSubscribers } from './subscribers.js'

/** For one instance alone: hints reach the subscribers of this process, after the publisher's turn of the event loop. */
export function createInProcessPubSub(): PubSub {
  const subscribers = createSubscribers({ onFirst: async () => {}, onLast: async () => {} })

  return {
    publish(connectionId) {
      if (subscribers.has(connectionId)) setImmediate(() => subscribers.notify(connectionId))
    },
    subscribe: (connectionId, onHint) => subscribers.add(connectionId, onHint),
    isUp: () => true,
    async close() {},
  }
}
