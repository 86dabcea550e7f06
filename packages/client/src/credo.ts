import {
  agentOf,
  createCredoQueue,
  type AddOptions,
  type AnyAgent,
  type CredoMessage,
  type CredoQueue,
  type MessagePickup,
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
export interface CredoAgent extends AnyAgent {
  didcomm: { messagePickup: MessagePickup }
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
  const { shared, count, take, add, remove, connect } = createCredoQueue(options, EVENTS)
  return {
    ...shared,
    getAvailableMessageCount: (_agentContext, options) => count(options),
    takeFromQueue: (_agentContext, options) => take(options),
    addMessage: (_agentContext, options) => add(options),
    removeMessages: (_agentContext, options) => remove(options),
    connect: (agent) => connect(agent && agentOf(agent, () => agent.didcomm.messagePickup)),
  }
}
