import { randomUUID } from 'node:crypto'
import { EventEmitter } from 'node:events'
import { createRequire } from 'node:module'
import { join } from 'node:path'
import t from 'tap'
import WebSocket from 'ws'
import { createMessagePickupQueue } from '../../packages/client/src/credo-0.5.js'
import { startService } from '../helpers/service.js'

/*
 * A real mediator of Credo 0.5 from CREDO_05 (see credo-0.5.test.ts) in front of the service: its pickup protocols V1 and V2, its live
 * sessions and its message pickup API use the adapter as its queue. What a wallet sends is handed to the protocols unpacked, because the
 * cryptography of 0.5 is in askar, which cannot be had here; what it would be sent is caught before it is packed.
 */
const credo = createRequire(join(process.env.CREDO_05!, 'package.json'))('@credo-ts/core')

const DID = 'did:key:z6MkpTHR8VNsBxYAAWHut2Geadd9jSwuBV8xRoAnwWsdvktH'
const encrypted = (ciphertext: string) => ({ protected: 'e30', iv: 'aXY', ciphertext, tag: 'dGFn' })

const service = await startService(t)
const queue = createMessagePickupQueue({ url: `${service.url.replace('http', 'ws')}/ws` })

const connection = new credo.ConnectionRecord({ id: randomUUID(), role: 'responder', state: 'completed', did: DID, theirDid: DID })
const container = new credo.DependencyManager()
container.registerInstance(credo.InjectionSymbols.Wallet, { isInitialized: true, isProvisioned: true })
container.registerInstance(credo.InjectionSymbols.StorageService, { getById: async () => connection })
const agent = new credo.Agent(
  {
    config: { label: 'mediator' },
    dependencies: { EventEmitterClass: EventEmitter, WebSocketClass: WebSocket, fetch, FileSystem: class {} },
    modules: { messagePickup: new credo.MessagePickupModule({ messagePickupRepository: queue }) },
  },
  container,
)
const sent: any[] = []
agent.dependencyManager.resolve(credo.MessageSender).sendMessage = async ({ message }: any) => void sent.push(message.toJSON())
const [v1, v2] = [new credo.V1MessagePickupProtocol(), new credo.V2MessagePickupProtocol()]
const from = (message: unknown) => new credo.InboundMessageContext(message, { agentContext: agent.context, connection })
const sessions = agent.dependencyManager.resolve(credo.MessagePickupSessionService)

await queue.connect(agent)

t.test('what Credo queues is picked up by V2: status, delivery, received', async (t) => {
  const ids: string[] = []
  for (const n of [1, 2, 3]) {
    const { connectionId } = { connectionId: connection.id }
    ids.push(await queue.addMessage({ connectionId, recipientDids: [DID], payload: encrypted(`message ${n}`) }))
  }
  const status = await v2.processStatusRequest(from(new credo.V2StatusRequestMessage({})))
  t.equal(status.message.messageCount, 3)
  const delivery = await v2.processDeliveryRequest(from(new credo.V2DeliveryRequestMessage({ limit: 2 })))
  t.same(
    delivery.message.appendedAttachments.map((attachment: any) => attachment.getDataAsJson().ciphertext),
    ['message 1', 'message 2'],
  )
  const received = await v2.processMessagesReceived(from(new credo.V2MessagesReceivedMessage({ messageIdList: ids.slice(0, 2) })))
  t.equal(received.message.messageCount, 1)
})

t.test('and by V1, which removes what it takes', async (t) => {
  const batch = await v1.processBatchPickup(from(new credo.V1BatchPickupMessage({ batchSize: 10 })))
  t.same(
    batch.message.messages.map(({ message }: any) => message.ciphertext),
    ['message 3'],
  )
  t.equal(await queue.getAvailableMessageCount({ connectionId: connection.id }), 0)
})

t.test('a live session of Credo is one of the service, and what arrives goes through deliverMessages', async (t) => {
  const connectionId = connection.id as string
  const { message: status } = await v2.processLiveDeliveryChange(from(new credo.V2LiveDeliveryChangeMessage({ liveDelivery: true })))
  t.equal(status.liveDelivery, true)
  while (!(await queue.getLiveSession({ connectionId })));
  const id = await queue.addMessage({ connectionId, recipientDids: [DID], payload: encrypted('live') })
  while (sent.length === 0) await new Promise((resolve) => setTimeout(resolve, 5))
  t.match(sent, [{ '~attach': [{ '@id': id, data: { json: { ciphertext: 'live' } } }] }])
  await v2.processMessagesReceived(from(new credo.V2MessagesReceivedMessage({ messageIdList: [id] })))
  t.ok(sessions.getLiveSessionByConnectionId(agent.context, { connectionId }))
  await v2.processLiveDeliveryChange(from(new credo.V2LiveDeliveryChangeMessage({ liveDelivery: false })))
  while (await queue.getLiveSession({ connectionId }));
  t.equal(await queue.getAvailableMessageCount({ connectionId }), 0)
})

t.teardown(() => queue.disconnect())
