import type { Hint, PubSub } from '../../src/ports.js'

/** For one instance alone: hints reach the subscribers of this process, after the publisher's turn of the event loop. */
export function createInProcessPubSub(): PubSub {
  const subscribers = new Map<string, Set<(hint: Hint) => void>>()

  return {
    async publish(connectionId, hint) {
      const listening = subscribers.get(connectionId)
      if (!listening) return
      // One who left in between is not called.
      setImmediate(() => {
        for (const onHint of listening) onHint(hint)
      })
    },

    async subscribe(connectionId, onHint) {
      let listening = subscribers.get(connectionId)
      if (!listening) subscribers.set(connectionId, (listening = new Set()))
      // The same function may subscribe twice, so each subscription has its own.
      const mine = (hint: Hint) => onHint(hint)
      listening.add(mine)
      return async () => {
        listening.delete(mine)
        if (listening.size === 0 && subscribers.get(connectionId) === listening) subscribers.delete(connectionId)
      }
    },
  }
}
