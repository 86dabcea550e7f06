import type { MethodName } from './contract.js'

/**
 * What may be done with a call when its answer was lost, or was "not now".
 *
 *   always   the same call again has no other outcome
 *   refused  only when the service had certainly not begun with it; otherwise the caller has to decide
 */
export type Repeat = 'always' | 'refused'

export const METHODS = {
  addMessage: 'always', // by its idempotencyKey
  takeFromQueue: 'always', // but for deleteMessages: what a lost answer had would be gone for good
  getAvailableMessageCount: 'always',
  removeMessages: 'always',
  removeAllMessages: 'refused', // again it would also remove what arrived in between
  getLiveSession: 'always',
  addLiveSession: 'always',
  removeLiveSession: 'always', // it names its session
  setPushToken: 'always',
  getPushToken: 'always',
  removePushToken: 'always',
} as const satisfies Record<string, Repeat>

// A new row of the contract does not compile here until somebody has thought about repeating it.
type Forgotten = Exclude<MethodName, keyof typeof METHODS>
const forgotten: [Forgotten] extends [never] ? true : Forgotten = true
void forgotten

/** Errors by which the service says that it did not begin. */
const REFUSALS = new Set(['overloaded', 'shutting_down'])

export function mayRepeat(method: keyof typeof METHODS, params: object, errorCode?: string): boolean {
  const repeat: Repeat =
    method === 'takeFromQueue' && 'deleteMessages' in params && params.deleteMessages === true ? 'refused' : METHODS[method]
  return repeat === 'always' || (errorCode !== undefined && REFUSALS.has(errorCode))
}
