import type { Config } from '../../src/config.js'
import { ConfigError } from '../../src/config.js'
import { ending } from '../../src/push.js'
import { createFcmSender, understandable } from './fcm.js'
import { fcmOptions } from './index.js'

/**
 * `npm run push:test -- --token … [--project …]`: sends one push and says in words what came of it, so that an operator can check the
 * credentials. @returns whether FCM took it
 */
export async function tryPush(config: Config, args: string[], say: (line: string) => void): Promise<boolean> {
  const valueOf = (name: string) => {
    const place = args.indexOf(`--${name}`)
    return place < 0 ? undefined : args[place + 1]
  }
  const [token, project] = [valueOf('token'), valueOf('project')]
  if (token === undefined) throw new ConfigError('Say which device: npm run push:test -- --token <registration token> [--project <name>]')
  if (config.FIREBASE_CREDENTIALS === undefined)
    throw new ConfigError('Pushes are off: FIREBASE_CREDENTIALS is not set. Set it to the key file of a service account.')

  const sender = await createFcmSender(fcmOptions(config, config.FIREBASE_CREDENTIALS))
  try {
    const target = { type: 'fcm', token, ...(project === undefined ? {} : { project }) }
    const refusal = sender.refuses(target)
    if (refusal !== undefined) throw new ConfigError(refusal)
    say(`Sending one push to …${ending(token)}, as the service would.`)
    const outcome = await sender.send(target, 'push:test')
    say(understandable(outcome))
    return outcome.kind === 'accepted'
  } finally {
    await sender.close()
  }
}
