import {
  createCredoQueue,
  type AddOptions,
  type CredoMessage,
  type CredoQueue,
  type SessionEvent,
  type TakeOptions,
} from './credo-queue.js'
import type { ClientOptions } from './index.js'

/** For @credo-ts/core 0.5: its MessagePickupRepository, `messagePickupRepository` of the MessagePickupModule. */

export type { ClientOptions } from './index.js'
export { MessagePickupError } from './index.js'
export type { ConnectionInfo, CredoMessage } from './credo-queue.js'

// By their values, so that neither Credo nor its version has to be here when this is loaded.
const EVENTS = { saved: 'LiveSessionSaved', removed: 'LiveSessionRemoved' }

/** The part of Credo's Agent that is needed. `messagePickup` is its own API, or that of `modules` when it is registered there. */
export interface CredoAgent {
  events: {
    on(event: string, listener: (event: never) => void): void
    off(event: string, listener: (event: never) => void): void
  }
  config: { logger: { warn(message: string, data?: Record<string, unknown>): void } }
  messagePickup: { deliverMessages(options: { pickupSessionId: string; messages: CredoMessage[] }): Promise<void> }
}

export interface MessagePickupQueue extends CredoQueue {
  getAvailableMessageCount(options: { connectionId: string; recipientDid?: string }): Promise<number>
  takeFromQueue(options: TakeOptions): Promise<CredoMessage[]>
  addMessage(options: AddOptions): Promise<string>
  removeMessages(options: { connectionId: string; messageIds: string[] }): Promise<void>
  /** With the agent, its live sessions are kept at the service and what arrives is delivered in them. Before agent.initialize(). */
  connect(agent?: CredoAgent): Promise<void>
}

export function createMessagePickupQueue(options: ClientOptions): MessagePickupQueue {
  const { client, count, take, add, remove, connect, disconnect, setConnectionInfo, messagesReceived } = createCredoQueue(options, EVENTS)
  return {
    client,
    getAvailableMessageCount: count,
    takeFromQueue: take,
    addMessage: add,
    removeMessages: remove,
    removeAllMessages: async (params) => void (await client.removeAllMessages(params)),
    getLiveSession: async (params) => (await client.getLiveSession(params)) === true,
    addLiveSession: client.addLiveSession,
    removeLiveSession: client.removeLiveSession,
    setConnectionInfo,
    messagesReceived,
    connect: (agent) =>
      connect(
        agent && {
          on: (event, listener: (event: SessionEvent) => void) => agent.events.on(event, listener),
          off: (event, listener: (event: SessionEvent) => void) => agent.events.off(event, listener),
          deliverMessages: (options) => agent.messagePickup.deliverMessages(options),
          warn: (text, data) => agent.config.logger.warn(text, { ...data }),
        },
      ),
    disconnect,
  }
}
