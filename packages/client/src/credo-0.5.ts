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

/** For @credo-ts/core 0.5: its MessagePickupRepository, `messagePickupRepository` of the MessagePickupModule. */

export type { ClientOptions } from './index.js'
export { MessagePickupError } from './index.js'
export type { ConnectionInfo, CredoMessage } from './credo-queue.js'

// By their values, so that neither Credo nor its version has to be here when this is loaded.
const EVENTS = { saved: 'LiveSessionSaved', removed: 'LiveSessionRemoved' }

/** The part of Credo's Agent that is needed. `messagePickup` is its own API, or that of `modules` when it is registered there. */
export interface CredoAgent extends AnyAgent {
  messagePickup: MessagePickup
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
  const { shared, count, take, add, remove, connect } = createCredoQueue(options, EVENTS)
  return {
    ...shared,
    getAvailableMessageCount: count,
    takeFromQueue: take,
    addMessage: add,
    removeMessages: remove,
    connect: (agent) => connect(agent && agentOf(agent, () => agent.messagePickup)),
  }
}
