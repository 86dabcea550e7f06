import { CallError } from './errors.js'
import type { Method } from './jsonrpc.js'

/** What this service may send on its own. */
const EVENTS = ['messagesReceived', 'liveSessionReplaced', 'pushTokenInvalid']

/**
 * What a JSON-RPC client of the rpc-websockets family asks of any server, beside the operations: a refused `rpc.on`
 * ends such a client's process. Events are sent to the owner of a session whether it asked or not.
 */
export function createWireMethods(discovery: () => object): Map<string, Method> {
  const acknowledge = (params: unknown) => {
    if (!Array.isArray(params) || !params.every((event) => typeof event === 'string'))
      throw new CallError('invalid_params', 'Params must be an array with names of events.', { field: 'params' })
    return Object.fromEntries(
      params.slice(0, 100).map((event) => [event.slice(0, 64), EVENTS.includes(event) ? 'ok' : 'provided event invalid']),
    )
  }
  const method = (answer: (params: unknown) => unknown): Method => ({
    run(params, _payload, _caller, ended) {
      process.nextTick(() => {
        let value
        try {
          value = answer(params)
        } catch (error) {
          return ended(error)
        }
        ended(undefined, { value, text: JSON.stringify(value) })
      })
    },
  })
  return new Map([
    ['ping', method(() => 'pong')],
    ['rpc.on', method(acknowledge)],
    ['rpc.off', method(acknowledge)],
    ['rpc.discover', method(discovery)],
  ])
}
