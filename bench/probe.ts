import { writeFileSync } from 'node:fs'
import { Session } from 'node:inspector/promises'
import { monitorEventLoopDelay } from 'node:perf_hooks'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'

/**
 * Looks into a service from within, where /proc cannot: `node --import` it, and send commands. Does nothing until then.
 * Only in the scenarios that need it; all others run the service as it is.
 */

export interface Probe {
  /** After a full garbage collection, bytes. */
  memory: { rss: number; heapUsed: number }
  /** Starts to watch for stalls. */
  watch: null
  /** The longest stall since, ms. */
  stall: number
  startProfile: null
  /** Writes the profile to `file`. */
  stopProfile: null
}

const delay = monitorEventLoopDelay({ resolution: 1 })
const session = new Session()

const commands: { [Name in keyof Probe]: (file: string) => Promise<Probe[Name]> } = {
  async memory() {
    setFlagsFromString('--expose-gc')
    const collect = runInNewContext('gc') as () => void
    for (let i = 0; i < 3; i++) {
      collect()
      await new Promise((resolve) => setTimeout(resolve, 100)) // buffers are freed by finalizers, later
    }
    const { rss, heapUsed, external } = process.memoryUsage()
    return { rss, heapUsed: heapUsed + external }
  },
  async watch() {
    delay.enable()
    delay.reset()
    return null
  },
  async stall() {
    delay.disable()
    return delay.max / 1e6
  },
  async startProfile() {
    session.connect()
    await session.post('Profiler.enable')
    await session.post('Profiler.setSamplingInterval', { interval: 500 })
    await session.post('Profiler.start')
    return null
  },
  async stopProfile(file) {
    const { profile } = await session.post('Profiler.stop')
    writeFileSync(file, JSON.stringify(profile))
    session.disconnect()
    return null
  },
}

process.on('message', ({ name, file }: { name: keyof Probe; file: string }) => {
  commands[name](file).then(
    (result) => process.send!({ result }),
    (error: Error) => process.send!({ error: error.stack }),
  )
})
process.channel?.unref()
process.on('disconnect', () => process.exit())
