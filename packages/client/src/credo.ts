import {
  createCredoQueue,
  type AddOptions,
  type CredoMessage,
  type CredoQueue,
  type SessionEvent,
  type TakeOptions,
} from './credo-queue.js'
import type { ClientOptions } from './index.js'

/** For @credo-ts/didcomm 0.6: its DidCommQueueTransportRepository, `queueTransportRepository` of the DidCommModule. */

export type { ClientOptions } from './index.js'
export { MessagePickupError } from './index.js'
export type { ConnectionInfo, CredoMessage } from './credo-queue.js'

// By their values, so that neither Credo nor its version has to be here when this is loaded.
const EVENTS = { saved: 'DidCommMessagePickupLiveSessionSaved', removed: 'DidCommMessagePickupLiveSessionRemoved' }

/** The part of Credo's Agent that is needed. */
export interface CredoAgent {
  events: {
    on(event: string, listener: (event: never) => void): void
    off(event: string, listener: (event: never) => void): void
  }
  config: { logger: { warn(message: string, data?: Record<string, unknown>): void } }
  didcomm: {
    messagePickup: { deliverMessages(options: { pickupSessionId: string; messages: CredoMessage[] }): Promise<void> }
  }
}

export interface MessagePickupQueue extends CredoQueue {
  getAvailableMessageCount(agentContext: unknown, options: { connectionId: string; recipientDid?: string }): Promise<number>
  takeFromQueue(agentContext: unknown, options: TakeOptions): Promise<CredoMessage[]>
  addMessage(agentContext: unknown, options: AddOptions): Promise<string>
  removeMessages(agentContext: unknown, options: { connectionId: string; messageIds: string[] }): Promise<void>
  /** With the agent, its live sessions are kept at the service and what arrives is delivered in them. Before agent.initialize(). */
  connect(agent?: CredoAgent): Promise<void>
}

export function createMessagePickupQueue(options: ClientOptions): MessagePickupQueue {
  const { client, count, take, add, remove, connect, disconnect, setConnectionInfo, messagesReceived } = createCredoQueue(options, EVENTS)
  return {
    client,
    getAvailableMessageCount: (_agentContext, options) => count(options),
    takeFromQueue: (_agentContext, options) => take(options),
    addMessage: (_agentContext, options) => add(options),
    removeMessages: (_agentContext, options) => remove(options),
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
          // Asked each time: an agent has its modules only once it is made.
          deliverMessages: (options) => agent.didcomm.messagePickup.deliverMessages(options),
          warn: (text, data) => agent.config.logger.warn(text, { ...data }),
        },
      ),
    disconnect,
  }
}
