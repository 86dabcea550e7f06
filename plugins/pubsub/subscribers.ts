/** Who of this process listens to which connection. The bus is asked once per connection, however many listen. */
export interface Subscribers {
  has(connectionId: string): boolean
  /** Resolves when the bus has been asked. @returns unsubscribe; a second call does nothing */
  add(connectionId: string, onHint: () => void): Promise<() => Promise<void>>
  /** Also of a connection that nobody listens to (any more): a hint may come late. */
  notify(connectionId: string): void
}

export interface Bus {
  /** Somebody listens to this connection now. It must not fail: what is not possible now is done later. */
  onFirst(connectionId: string): Promise<void>
  /** Nobody does any more. */
  onLast(connectionId: string): Promise<void>
}

export function createSubscribers({ onFirst, onLast }: Bus): Subscribers {
  const byConnection = new Map<string, { listening: Set<() => void>; asked: Promise<void> }>()

  return {
    has: (connectionId) => byConnection.has(connectionId),

    async add(connectionId, onHint) {
      let entry = byConnection.get(connectionId)
      if (!entry) {
        entry = { listening: new Set(), asked: onFirst(connectionId) }
        byConnection.set(connectionId, entry)
      }
      const { listening, asked } = entry
      const mine = () => onHint() // the same function may subscribe twice
      listening.add(mine)
      await asked
      return async () => {
        if (!listening.delete(mine) || listening.size > 0) return
        byConnection.delete(connectionId)
        await onLast(connectionId)
      }
    },

    notify(connectionId) {
      for (const onHint of byConnection.get(connectionId)?.listening ?? []) onHint()
    },
  }
}
