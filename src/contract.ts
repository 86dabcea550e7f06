import { FormatRegistry, Type, type Static, type TObject, type TSchema } from '@sinclair/typebox'
import type { JsonBytes, JsonText } from './json.js'
import type { StoredMessage } from './ports.js'

/** What one call may ask for. semantics: every one is a setting, and the error that refuses a call names it. */
export interface Limits {
  /** Bytes of one payload as JSON text. */
  maxPayloadBytes: number
  /** Bytes of one WebSocket frame or HTTP body. */
  maxFrameBytes: number
  /** Levels of nesting of a frame or body. */
  maxDepth: number
  /** Calls in one JSON-RPC batch. */
  maxBatch: number
  /** UTF-16 code units, like the three below it that count characters. */
  maxConnectionIdLength: number
  maxDidLength: number
  maxRecipientDids: number
  /** Ids in one removeMessages. */
  maxMessageIds: number
  /** Messages in one answer of takeFromQueue; a larger `limit` is lowered to it. */
  maxTakeMessages: number
  /** Bytes of payload in one answer of takeFromQueue; a larger `limitBytes` is lowered to it. */
  maxTakeBytes: number
}

/** One operation. Everything that is told or done about it, on any transport, comes from here. */
export interface Operation<Params extends TObject = TObject, Result extends TSchema = TSchema> {
  summary: string
  description: string
  params: Params
  result: Result
  /** `VERB /path` below /v1; what is not in the path comes from the query (GET, DELETE) or the body. */
  http: `${'GET' | 'POST' | 'PUT' | 'DELETE'} /${string}`
  example: { params: Static<Params>; result: unknown }
  /**
   * Calls of one socket for one connectionId take effect in the order of their arrival. Neighbours with this mark may
   * overlap all the same, because the store keeps their order (adds) or it does not matter (removes, counts).
   */
  overlaps?: true
  /** Writes the result as JSON text, where payloads must pass through as they came or there is a quicker way. */
  stringify?(result: Static<Result>): string
}

// Of what ISO 8601 allows, the moments that Postgres takes and that come back with a year of four digits.
FormatRegistry.Set('date-time', (value) => {
  const match = /^(\d{4}-\d\d-\d\d)T\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-](\d\d):\d\d)$/.exec(value)
  if (!match) return false
  const [moment, day] = [new Date(value), new Date(match[1]!)]
  if (Number.isNaN(moment.getTime()) || Number.isNaN(day.getTime())) return false
  return (
    day.toISOString().startsWith(match[1]!) &&
    Number(match[2] ?? 0) <= 14 &&
    /^(?!0000)\d{4}-/.test(moment.toISOString()) &&
    !value.startsWith('0000')
  )
})

// Postgres cannot store NUL, and a lone surrogate would be stored as U+FFFD, making two different names one.
const PLAIN_TEXT = '^(?:[^\\u0000\\ud800-\\udfff]|[\\ud800-\\udbff][\\udc00-\\udfff])*$'

const EXAMPLE_CONNECTION = '8f1f6e1c-6a3e-4c1b-9a53-0f8b4b8f7c11'
const EXAMPLE_DID = 'did:key:z6MkhaXgBZDvotDkL5257faiztiGiC2QtKLGpbnnEGta2doK'
const EXAMPLE_ID = '1042-k3f9a2'
const EXAMPLE_ENVELOPE = {
  protected: 'eyJ0eXAiOiJhcHBsaWNhdGlvbi9kaWRjb21tLWVuY3J5cHRlZCtqc29uIn0',
  iv: 'b8jJXwJZxQ0',
  ciphertext: 'q2v5Yl0',
  tag: 'x3Yk0w',
} as never // the example shows the value; inside the service it is text

/** @see src/errors.ts for what any of these may answer instead of its result. */
export function createContract(limits: Limits) {
  const text = (maxLength: number, description: string) => Type.String({ minLength: 1, maxLength, pattern: PLAIN_TEXT, description })
  const connectionId = text(limits.maxConnectionIdLength, "The mediator's name for its connection with one mediatee. It names a queue.")
  const recipientDid = (description: string) => text(limits.maxDidLength, description)
  const sessionId = (description: string) => text(limits.maxConnectionIdLength, description)
  const messageId = (description: string) => Type.String({ description })
  const envelope = <Json extends JsonText | JsonBytes>(description: string) =>
    Type.Unsafe<Json>({
      ...Type.Union([Type.Object({}, { additionalProperties: true }), Type.String({ minLength: 1 })]),
      description,
    })
  const queuedMessage = Type.Object(
    {
      id: messageId('Opaque. It is what removeMessages wants.'),
      receivedAt: Type.String({
        format: 'date-time',
        description: 'When the message was accepted, or what addMessage gave as receivedAt.',
      }),
      encryptedMessage: envelope<JsonText>('The payload of addMessage, unchanged.'),
    },
    { title: 'QueuedMessage' },
  )
  const queue = '/connections/:connectionId/messages' as const
  const liveSession = '/connections/:connectionId/live-session' as const
  const pushToken = '/connections/:connectionId/push-token' as const
  const pushTokenFields = {
    type: text(32, 'The push service: fcm.'),
    token: text(4096, 'The device token.'),
    project: Type.Optional(text(64, 'The name of one of several Firebase projects; the default one when absent.')),
  }

  return {
    addMessage: operation({
      summary: 'Add a message to the queue',
      description:
        'Answers with the id of the message once it is committed in the store. A wallet that is live is told at once, on whatever instance it is connected.',
      params: Type.Object({
        connectionId,
        recipientDids: Type.Array(recipientDid('A DID the message is addressed to.'), {
          minItems: 1,
          maxItems: limits.maxRecipientDids,
          description: 'The DIDs the message is addressed to.',
        }),
        payload: envelope<JsonBytes>('The encrypted message, a JSON object or a string. It comes back unchanged.'),
        receivedAt: Type.Optional(
          Type.String({
            format: 'date-time',
            maxLength: 64,
            description: 'When the mediator received it; informational, the order of the queue is not touched.',
          }),
        ),
        idempotencyKey: Type.Optional(
          text(
            128,
            'The same key on the same connection answers the id of the first message while that message exists, and with the same payload for five minutes after it was removed.',
          ),
        ),
        pushNotificationToken: Type.Optional(
          Type.Object(pushTokenFields, {
            description:
              'Where to wake the wallet when it has no live session; without it, the token of the connection is used (setPushToken, or what came with an earlier message).',
          }),
        ),
        token: Type.Optional(text(4096, 'The older, plain form of pushNotificationToken: an FCM token.')),
      }),
      result: messageId('The id of the message.'),
      http: `POST ${queue}`,
      example: {
        params: { connectionId: EXAMPLE_CONNECTION, recipientDids: [EXAMPLE_DID], payload: EXAMPLE_ENVELOPE },
        result: EXAMPLE_ID,
      },
      overlaps: true,
      stringify: (id) => `"${id}"`, // one of ours: nothing in it is escaped
    }),

    takeFromQueue: operation({
      summary: 'Take messages from the head of the queue, oldest first',
      description:
        'Without deleteMessages nothing is removed until removeMessages: with no live session it can simply be repeated, with one the messages are in flight until they are removed, their lease runs out or the session ends. With deleteMessages the messages are removed as they are read, and no message goes to two callers.',
      params: Type.Object({
        connectionId,
        recipientDid: Type.Optional(recipientDid('Only messages addressed to this DID.')),
        limit: Type.Optional(
          Type.Integer({ minimum: 1, description: `How many messages at most; ${limits.maxTakeMessages} when absent, and never more.` }),
        ),
        limitBytes: Type.Optional(
          Type.Integer({
            minimum: 1,
            description: `How many bytes of payload at most; ${limits.maxTakeBytes} when absent, and never more. A message larger than this is handed out alone when it is first.`,
          }),
        ),
        deleteMessages: Type.Optional(Type.Boolean({ description: 'Remove the messages as they are read.' })),
      }),
      result: Type.Array(queuedMessage),
      http: `POST ${queue}/take`,
      example: {
        params: { connectionId: EXAMPLE_CONNECTION, limit: 10 },
        result: [{ id: EXAMPLE_ID, receivedAt: '2026-01-31T12:00:00.000Z', encryptedMessage: EXAMPLE_ENVELOPE }],
      },
      stringify: stringifyMessages,
    }),

    getAvailableMessageCount: operation({
      summary: 'Count the messages that wait',
      description: 'Messages that are not removed, not expired and not in flight.',
      params: Type.Object({ connectionId, recipientDid: Type.Optional(recipientDid('Only messages addressed to this DID.')) }),
      result: Type.Integer({ minimum: 0 }),
      http: `GET ${queue}/count`,
      example: { params: { connectionId: EXAMPLE_CONNECTION }, result: 1 },
      overlaps: true,
    }),

    removeMessages: operation({
      summary: 'Remove messages by id (the ack)',
      description: 'Idempotent: ids that are unknown or already removed are fine. Works from any socket and any instance.',
      params: Type.Object({
        connectionId,
        messageIds: Type.Array(Type.String({ maxLength: 128 }), {
          maxItems: limits.maxMessageIds,
          description: 'Ids as addMessage, takeFromQueue or messagesReceived gave them.',
        }),
      }),
      result: Type.Null(),
      http: `POST ${queue}/remove`,
      example: { params: { connectionId: EXAMPLE_CONNECTION, messageIds: [EXAMPLE_ID] }, result: null },
      overlaps: true,
    }),

    removeAllMessages: operation({
      summary: 'Remove all messages addressed to a DID',
      description: 'Only messages of this connection whose recipientDids contain the DID.',
      params: Type.Object({ connectionId, recipientDid: recipientDid('The DID.') }),
      result: Type.Null(),
      http: `DELETE ${queue}`,
      example: { params: { connectionId: EXAMPLE_CONNECTION, recipientDid: EXAMPLE_DID }, result: null },
    }),

    getLiveSession: operation({
      summary: 'Ask whether a live session exists',
      description: 'True when this connectionId can be delivered to now, on whatever instance; otherwise null.',
      params: Type.Object({ connectionId }),
      result: Type.Union([Type.Literal(true), Type.Null()]),
      http: `GET ${liveSession}`,
      example: { params: { connectionId: EXAMPLE_CONNECTION }, result: true },
    }),

    addLiveSession: operation({
      summary: 'Open a live session',
      description:
        'The calling socket becomes the owner and receives messagesReceived for what arrives from now on; the backlog waits to be taken. The newest session wins, and the displaced owner receives liveSessionReplaced. Over REST the session has no socket and lasts 60 s unless it is renewed.',
      params: Type.Object({ connectionId, sessionId: sessionId("The mediator's name for the session.") }),
      result: Type.Boolean(),
      http: `PUT ${liveSession}`,
      example: { params: { connectionId: EXAMPLE_CONNECTION, sessionId: 'session-1' }, result: true },
    }),

    removeLiveSession: operation({
      summary: 'End the live session',
      description:
        'True when a session was ended, false when there was none. A socket whose own session was displaced by a newer one gets false and changes nothing.',
      params: Type.Object({ connectionId, sessionId: Type.Optional(sessionId('End the session only if it is this one.')) }),
      result: Type.Boolean(),
      http: `DELETE ${liveSession}`,
      example: { params: { connectionId: EXAMPLE_CONNECTION }, result: true },
    }),

    setPushToken: operation({
      summary: 'Register where to wake the wallet',
      description:
        "From now on any sender's message wakes it when it has no live session. It replaces the token that was there; one that was dead is tried again.",
      params: Type.Object({ connectionId, ...pushTokenFields }),
      result: Type.Null(),
      http: `PUT ${pushToken}`,
      example: { params: { connectionId: EXAMPLE_CONNECTION, type: 'fcm', token: 'cXa1…APA91b' }, result: null },
    }),

    getPushToken: operation({
      summary: 'Ask where the wallet would be woken',
      description:
        'The token of the connection, by its last characters, and whether the push service has refused it for good (dead). Null when there is none.',
      params: Type.Object({ connectionId }),
      result: Type.Union([
        Type.Object(
          {
            type: Type.String(),
            project: Type.Optional(Type.String()),
            ending: Type.String({ description: 'The last 6 characters of the token.' }),
            since: Type.String({ format: 'date-time', description: 'When it was set.' }),
            dead: Type.Optional(
              Type.String({ description: 'Why the push service does not take it any more. It is not used until it is set again.' }),
            ),
          },
          { title: 'PushToken' },
        ),
        Type.Null(),
      ]),
      http: `GET ${pushToken}`,
      example: {
        params: { connectionId: EXAMPLE_CONNECTION },
        result: { type: 'fcm', ending: 'APA91b', since: '2026-01-31T12:00:00.000Z' },
      },
    }),

    removePushToken: operation({
      summary: 'Forget where to wake the wallet',
      description: 'True when there was a token. A push that is still owed to it is cancelled.',
      params: Type.Object({ connectionId }),
      result: Type.Boolean(),
      http: `DELETE ${pushToken}`,
      example: { params: { connectionId: EXAMPLE_CONNECTION }, result: true },
    }),
  }
}

export type Contract = ReturnType<typeof createContract>
export type OperationName = keyof Contract
export type Params<Name extends OperationName> = Static<Contract[Name]['params']>
export type Result<Name extends OperationName> = Static<Contract[Name]['result']>

/** The messages as a JSON array, each payload as it came in. */
export function stringifyMessages(messages: readonly StoredMessage[]): string {
  let text = '['
  for (const { id, receivedAt, encryptedMessage } of messages) {
    if (text.length > 1) text += ','
    text += `{"id":"${id}","receivedAt":"${receivedAt}","encryptedMessage":${encryptedMessage}}`
  }
  return text + ']'
}

export function operation<Params extends TObject, Result extends TSchema>(row: Operation<Params, Result>): Operation<Params, Result> {
  return row
}
