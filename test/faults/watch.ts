import { setTimeout as sleep } from 'node:timers/promises'
import { memoryOf } from '../../bench/measure.js'
import type { RunningServer } from '../helpers/process.js'
import type { Proxy } from '../helpers/proxy.js'

/** What an operator's probes and charts see of a service while something is done to it. */

export const throughProxy = (url: string, { port }: Proxy) =>
  Object.assign(new URL(url), { hostname: '127.0.0.1', port: String(port) }).href

/** Asks again and again until `end()`. */
export function watch({ url, pid }: RunningServer) {
  const seen = { healthMs: 0, healthy: true, unready: 0, peakBytes: 0 }
  let ended = false
  const watching = (async () => {
    while (!ended) {
      const started = performance.now()
      const [health, ready] = await Promise.all([
        fetch(`${url}/health`).then((response) => {
          seen.healthMs = Math.max(seen.healthMs, performance.now() - started)
          return response.status
        }),
        fetch(`${url}/ready`).then(({ status }) => status),
      ])
      seen.healthy &&= health === 200
      if (ready === 503) seen.unready++
      seen.peakBytes = Math.max(seen.peakBytes, memoryOf(pid))
      await sleep(100)
    }
  })()
  return {
    async end() {
      ended = true
      await watching
      return seen
    },
  }
}
