import { Type, type Static } from '@sinclair/typebox'
import { createContract, operation, type Limits } from './contract.js'

/** One page of a list. */
const MAX_PAGE = 200
const DEFAULT_PAGE = 50

const EXAMPLE_CONNECTION = '8f1f6e1c-6a3e-4c1b-9a53-0f8b4b8f7c11'
const EXAMPLE_ID = '1042-k3f9a2'
const EXAMPLE_TIME = '2026-01-31T12:00:00.000Z'
const EXAMPLE_CURSOR = 'WyJkZXB0aCIsIjE4IiwiYWxpY2UiXQ'
const EXAMPLE_SUMMARY = { messages: 18, bytes: 9_216, oldestReceivedAt: EXAMPLE_TIME, oldestAcceptedAt: EXAMPLE_TIME, parked: 1 }

/**
 * What an operator can ask and do, over REST only and with the scope `admin`: rows like those of contract.ts, each with a method in
 * administrator.ts. None of them shows a payload or a DID: the operator of the service need not know who writes to whom.
 */
export function createAdministration(limits: Limits) {
  const contract = createContract(limits)
  const { connectionId, sessionId } = contract.removeLiveSession.params.properties
  const { messageIds } = contract.removeMessages.params.properties
  const time = (description: string) => Type.String({ format: 'date-time', description })
  const amount = (description: string) => Type.Integer({ minimum: 0, description })
  const limit = Type.Optional(
    Type.Integer({
      minimum: 1,
      maximum: MAX_PAGE,
      description: `How many at most; ${DEFAULT_PAGE} when absent, and never more than ${MAX_PAGE}.`,
    }),
  )
  const cursor = Type.Optional(
    Type.String({ minLength: 1, maxLength: 4_096, description: 'Goes on where a former page ended: its `next`.' }),
  )
  const next = Type.Optional(Type.String({ description: 'The cursor of the next page. Absent on the last one.' }))

  const summary = {
    messages: amount('All that is stored, in flight or not.'),
    bytes: amount('Of their payloads.'),
    oldestReceivedAt: Type.Optional(time('The earliest receivedAt of its messages.')),
    oldestAcceptedAt: Type.Optional(time('When the oldest message was stored. Absent when there is none.')),
    parked: amount('Messages given up after five deliveries to a live session: they wait to be taken.'),
  }
  const metadata = {
    id: Type.String({ description: 'As addMessage answered it.' }),
    bytes: amount('Of its payload.'),
    recipientDids: amount('How many it has.'),
    receivedAt: time('As takeFromQueue answers it.'),
    acceptedAt: time('When it was stored.'),
    deliveries: amount('How many times it was sent to a live session.'),
  }
  const inFlight = Type.Object(
    { by: Type.Union([Type.Literal('take'), Type.Literal('delivery')]), until: time('When its lease runs out.') },
    { description: 'In the live session there is now. Absent when it is not in flight.' },
  )
  const liveSession = Type.Object(
    {
      sessionId: Type.String(),
      instanceId: Type.Optional(Type.String({ description: 'Where its socket is. Absent when it has none.' })),
      since: time('When it was opened.'),
      expiresAt: Type.Optional(time('When it ends unless it is renewed; only without a socket.')),
    },
    { description: 'Absent when there is none.' },
  )
  const pushToken = Type.Object(
    {
      type: Type.String(),
      project: Type.Optional(Type.String()),
      ending: Type.String(),
      since: time('When it was set.'),
      dead: Type.Optional(Type.String()),
    },
    { description: 'By its last 6 characters. Absent when there is none.' },
  )
  const connection = '/admin/connections/:connectionId' as const

  return {
    listConnections: operation({
      summary: 'List the connections with most, oldest or largest mail',
      description:
        'Reads the whole queue, about a second for a million messages, and never for longer than 5 s. A connection whose mail does not change is on one page exactly; one whose mail does may be on two or none.',
      params: Type.Object({
        by: Type.Optional(
          Type.Union([Type.Literal('depth'), Type.Literal('age'), Type.Literal('bytes')], {
            description: 'What comes first: most messages (the default), the oldest message, or most bytes.',
          }),
        ),
        limit,
        cursor,
      }),
      result: Type.Object({
        connections: Type.Array(
          Type.Object({ connectionId, ...summary, isLive: Type.Boolean({ description: 'Whether it has a live session.' }) }),
        ),
        next,
      }),
      http: 'GET /admin/connections',
      example: {
        params: { by: 'depth', limit: 50 },
        result: { connections: [{ connectionId: EXAMPLE_CONNECTION, ...EXAMPLE_SUMMARY, isLive: false }], next: EXAMPLE_CURSOR },
      },
    }),

    inspectConnection: operation({
      summary: 'Show what is known of a connection',
      description: 'Its queue, its live session, and where it would be woken. A connection that is unknown has an empty queue.',
      params: Type.Object({ connectionId }),
      result: Type.Object({
        connectionId,
        ...summary,
        liveSession: Type.Optional(liveSession),
        pushToken: Type.Optional(pushToken),
      }),
      http: `GET ${connection}`,
      example: {
        params: { connectionId: EXAMPLE_CONNECTION },
        result: {
          connectionId: EXAMPLE_CONNECTION,
          ...EXAMPLE_SUMMARY,
          liveSession: { sessionId: 'session-1', instanceId: '0c7a8a3e-63f5-4e1b-8a5c-6f0a1f6b7c2d', since: EXAMPLE_TIME },
          pushToken: { type: 'fcm', ending: 'APA91b', since: EXAMPLE_TIME },
        },
      },
    }),

    listMessages: operation({
      summary: 'List the messages of a connection, oldest first',
      description: 'What is known of them beside their content. Nothing is taken and nothing changes.',
      params: Type.Object({ connectionId, limit, cursor }),
      result: Type.Object({ messages: Type.Array(Type.Object({ ...metadata, inFlight: Type.Optional(inFlight) })), next }),
      http: `GET ${connection}/messages`,
      example: {
        params: { connectionId: EXAMPLE_CONNECTION, limit: 50 },
        result: {
          messages: [
            {
              ...{ id: EXAMPLE_ID, bytes: 512, recipientDids: 1, receivedAt: EXAMPLE_TIME, acceptedAt: EXAMPLE_TIME, deliveries: 1 },
              inFlight: { by: 'delivery', until: '2026-01-31T12:00:30.000Z' },
            },
          ],
        },
      },
    }),

    listParkedMessages: operation({
      summary: 'List the messages that were given up after five deliveries',
      description:
        'Across connections, by connectionId. They are not delivered any more; taking still hands them out. Reads the whole queue, like listConnections.',
      params: Type.Object({ limit, cursor }),
      result: Type.Object({ messages: Type.Array(Type.Object({ connectionId, ...metadata })), next }),
      http: 'GET /admin/parked-messages',
      example: {
        params: { limit: 50 },
        result: {
          messages: [
            {
              connectionId: EXAMPLE_CONNECTION,
              ...{ id: EXAMPLE_ID, bytes: 512, recipientDids: 1, receivedAt: EXAMPLE_TIME, acceptedAt: EXAMPLE_TIME, deliveries: 5 },
            },
          ],
        },
      },
    }),

    purgeMessages: operation({
      summary: 'Destroy messages of a connection',
      description:
        'What was not picked up is lost. Unless dryRun is false it only counts. What arrives after the call began stays. The log says who, where and how many.',
      params: Type.Object({
        connectionId,
        olderThanSeconds: Type.Optional(
          Type.Integer({ minimum: 0, maximum: 2 ** 31 - 1, description: 'Only messages that were stored this long ago.' }),
        ),
        messageIds: Type.Optional({ ...messageIds, description: 'Only these messages. Unknown ids are fine.' }),
        dryRun: Type.Optional(Type.Boolean({ description: 'True when absent: what is left out must not destroy mail.' })),
      }),
      result: Type.Object({
        messages: amount('That were destroyed, or would be.'),
        bytes: amount('Of their payloads.'),
        dryRun: Type.Boolean(),
        more: Type.Boolean({ description: 'There was no time for all of them: call again.' }),
      }),
      http: `POST ${connection}/purge`,
      example: {
        params: { connectionId: EXAMPLE_CONNECTION, olderThanSeconds: 604_800, dryRun: true },
        result: { messages: 12, bytes: 6_144, dryRun: true, more: false },
      },
    }),

    endLiveSession: operation({
      summary: 'End the live session of a connection, whoever owns it',
      description:
        'True when there was one. Its messages in flight are free at once, and the next ones owe pushes. The mediator may open it again. The log says who did it.',
      params: Type.Object({
        connectionId,
        sessionId,
      }),
      result: Type.Boolean(),
      http: `DELETE ${connection}/live-session`,
      example: { params: { connectionId: EXAMPLE_CONNECTION }, result: true },
    }),
  }
}

export type AdministrationTable = ReturnType<typeof createAdministration>
export type AdministrationName = keyof AdministrationTable
export type AdministrationParams<Name extends AdministrationName> = Static<AdministrationTable[Name]['params']>
export type AdministrationResult<Name extends AdministrationName> = Static<AdministrationTable[Name]['result']>
export { DEFAULT_PAGE }
