import type { MessagePickupError } from './errors.js'
import type { QueuedMessage } from './contract.js'

export interface Events {
  /** What arrived for a connection with a live session here. It stays in the queue until removeMessages. */
  messagesReceived: { connectionId: string; messages: QueuedMessage[] }
  /** A newer session, of another client, took over: this one is over, and is not opened again. */
  liveSessionReplaced: { connectionId: string; sessionId: string }
  /** The push service does not know the token of the connection any more. `token` is its end. */
  pushTokenInvalid: { connectionId: string; token?: string }

  connected: { url: string }
  /** The socket was lost. `code` is that of the close frame, 1006 when there was none. */
  disconnected: { url: string; code: number; reason: string }
  /** The next attempt begins in `delayMs`; `attempt` counts from 1 and begins again with each answer of a service. */
  reconnecting: { url: string; delayMs: number; attempt: number; reason: string }
  /** After a reconnect these connections are live again. What arrived meanwhile waits: count and take it now. */
  sessionsRestored: { connectionIds: string[] }
  /** A session could not be opened again, because the service refused it for good. */
  liveSessionFailed: { connectionId: string; sessionId: string; error: MessagePickupError }
}

export type EventName = keyof Events
export type Listener<Name extends EventName> = (event: Events[Name]) => void

export interface Emitter {
  /** @returns what takes the listener off again */
  on<Name extends EventName>(name: Name, listener: Listener<Name>): () => void
  off<Name extends EventName>(name: Name, listener: Listener<Name>): void
  emit<Name extends EventName>(name: Name, event: Events[Name]): void
}

export function createEmitter(): Emitter {
  const listeners = new Map<EventName, Set<(event: never) => void>>()
  const of = (name: EventName) => {
    const found = listeners.get(name) ?? new Set()
    listeners.set(name, found)
    return found
  }
  return {
    on(name, listener) {
      of(name).add(listener)
      return () => void of(name).delete(listener)
    },
    off: (name, listener) => void of(name).delete(listener),
    emit(name, event) {
      for (const listener of [...of(name)]) {
        try {
          ;(listener as (event: Events[EventName]) => void)(event)
        } catch (error) {
          // The listener's own fault must be seen, and must not stop what the frame began.
          queueMicrotask(() => {
            throw error
          })
        }
      }
    },
  }
}
