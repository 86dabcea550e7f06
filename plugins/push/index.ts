import fp from 'fastify-plugin'
import type { Config } from '../../src/config.js'
import type { PushSender } from '../../src/ports.js'
import { createFcmSender } from './fcm.js'

declare module 'fastify' {
  interface FastifyInstance {
    /** Absent when pushes are off. */
    pushSender: PushSender | undefined
  }
}

/** Decorates `pushSender`: FCM when there are Firebase credentials, else none. */
export default fp<{ config: Config }>(
  async (app, { config }) => {
    if (config.FIREBASE_CREDENTIALS === undefined) return void app.decorate('pushSender', undefined)
    const sender = await createFcmSender(fcmOptions(config, config.FIREBASE_CREDENTIALS))
    app.addHook('onClose', () => sender.close())
    app.decorate('pushSender', sender)
  },
  { name: 'push' },
)

export function fcmOptions(config: Config, credentials: string) {
  return {
    credentials,
    title: config.PUSH_TITLE,
    body: config.PUSH_BODY,
    dataOnly: config.PUSH_DATA_ONLY,
    tagSecret: config.PUSH_TAG_SECRET,
    timeoutMs: config.PUSH_TIMEOUT_MS,
  }
}
