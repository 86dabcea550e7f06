import type { Limits, OperationName, Params, Result } from './contract.js'
import { CallError } from './errors.js'
import type { Socket } from './delivery.js'
import type { LiveSessions } from './live-sessions.js'
import type { Added, MessageStore, NewMessage, PushOutbox } from './ports.js'
import type { Push } from './push.js'
import { isQuotaExceeded, type createQuota } from './quota.js'
import type { Told } from './told.js'

/** Who calls. A socket can be delivered to; a REST request has none. */
export interface Caller {
  readonly socket?: Socket
  /** Whose calls are counted together by the rate limit: a key, or an address. Without one they are not counted here. */
  readonly client?: string
  /** For how long the call has waited before it began; the time in which it is answered counts from its arrival. */
  readonly waitedMs?: number
}

/**
 * One method for each row of the contract: a row without a handler does not compile. It answers by its promise, or without one by `outcome`, not
 * before it returns; addMessage does, because most calls are that one. docs/decisions/0008
 */
export type Pickup = {
  [Name in OperationName]: (params: Params<Name>, caller: Caller, outcome: Outcome<Result<Name>>) => Promise<Result<Name>> | undefined
}

/** Whoever waits for a call. */
export interface Outcome<T> {
  succeed(value: T): void
  fail(error: unknown): void
}

export interface PickupOptions {
  store: MessageStore
  outbox: PushOutbox
  /** Absent when pushes are off: tokens are kept all the same. */
  push?: Push
  liveSessions: LiveSessions
  quota: ReturnType<typeof createQuota>
  limits: Limits
  leaseMs: number
}

/** The operations. Each writes to the store first, then tells whoever may listen, then answers. */
export function createPickup({ store, outbox, push, liveSessions, quota, limits, leaseMs }: PickupOptions): Pickup {
  return {
    addMessage({ connectionId, recipientDids, payload, receivedAt, idempotencyKey, pushNotificationToken, token }, { socket }, outcome) {
      const payloadBytes = payload.length
      if (payloadBytes > limits.maxPayloadBytes) {
        throw new CallError(
          'payload_too_large',
          `payload must be at most ${limits.maxPayloadBytes} bytes of JSON, it has ${payloadBytes}.`,
          {
            field: 'payload',
            limit: limits.maxPayloadBytes,
          },
        )
      }
      const pushToken = push?.usable(pushNotificationToken ?? (token === undefined ? undefined : { type: 'fcm', token }))
      // Always the same properties: V8 makes a new hidden class of each spread one, and all code that reads a message is slow from then on.
      const messageFor = (ifAtMost?: NewMessage['ifAtMost']): NewMessage => ({
        connectionId,
        recipientDids,
        payload,
        payloadBytes,
        receivedAt,
        idempotencyKey,
        pushToken,
        claimFor: undefined,
        ifAtMost,
      })
      const add = (ifAtMost: NewMessage['ifAtMost'], told: Told<Added>) => liveSessions.adding(messageFor(ifAtMost), store.add, told)
      quota.run(connectionId, payloadBytes, add, (added) => {
        if (added instanceof Error) return fail(added)
        liveSessions.added(connectionId, added)
        push?.added(connectionId, socket, pushToken, added.push)
        outcome.succeed(added.id)
      })
      return undefined

      function fail(error: Error): void {
        if (idempotencyKey === undefined || !isQuotaExceeded(error)) return outcome.fail(error)
        // Repeated because its answer was lost: it takes no more room.
        store.idOfKey(messageFor()).then(
          (first) => {
            if (first === undefined) return outcome.fail(error)
            liveSessions.added(connectionId, { id: first })
            outcome.succeed(first)
          },
          (other: unknown) => outcome.fail(other),
        )
      }
    },

    async takeFromQueue({ connectionId, recipientDid, limit = Infinity, limitBytes = Infinity, deleteMessages = false }) {
      const messages = await store.take({
        connectionId,
        recipientDid,
        limit: Math.min(limit, limits.maxTakeMessages),
        limitBytes: Math.min(limitBytes, limits.maxTakeBytes),
        remove: deleteMessages,
        leaseMs,
      })
      if (deleteMessages)
        liveSessions.removed(
          connectionId,
          messages.map(({ id }) => id),
        )
      return messages
    },

    getAvailableMessageCount({ connectionId, recipientDid }) {
      return store.count(connectionId, recipientDid)
    },

    async removeMessages({ connectionId, messageIds }) {
      await store.remove(connectionId, messageIds)
      liveSessions.removed(connectionId, messageIds)
      return null
    },

    async removeAllMessages({ connectionId, recipientDid }) {
      liveSessions.removed(connectionId, await store.removeAll(connectionId, recipientDid))
      return null
    },

    async getLiveSession({ connectionId }) {
      return (await liveSessions.isLive(connectionId)) || null
    },

    addLiveSession({ connectionId, sessionId }, { socket }) {
      return liveSessions.add(connectionId, sessionId, socket)
    },

    removeLiveSession({ connectionId, sessionId }, { socket }) {
      return liveSessions.remove(connectionId, sessionId, socket)
    },

    async setPushToken({ connectionId, ...pushToken }) {
      const refusal = push?.refuses(pushToken)
      if (refusal !== undefined) throw new CallError('invalid_params', refusal, { field: pushToken.type === 'fcm' ? 'project' : 'type' })
      await outbox.setToken(connectionId, pushToken)
      return null
    },

    async getPushToken({ connectionId }) {
      return (await outbox.getToken(connectionId)) ?? null
    },

    removePushToken({ connectionId }) {
      return outbox.removeToken(connectionId)
    },
  }
}
