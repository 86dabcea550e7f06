import type { Log } from '../../src/ports.js'

/** Whether the bus is there, told once per change: an outage makes some 75 errors a second. */
export function createBusState(name: string, log: Log) {
  let isUp: boolean | undefined

  return {
    isUp: () => isUp === true,
    set(next: boolean, err?: unknown): void {
      if (next === isUp) return
      if (next && isUp === false) log.info({ bus: name }, 'bus answers again')
      if (!next) log.warn({ bus: name, err }, 'bus is down: messages of other instances are found every 5 s until it is back')
      isUp = next
    },
  }
}
