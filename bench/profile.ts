/*
 * Where does the CPU of the service go while messages are added, drained, and pass through a day?
 *
 *   npm run bench:profile
 *
 * V8's sampling profiler (that of `node --cpu-prof`, switched on for the stage only) in the service as it is built, warm. Self time of
 * what it was busy with; idling is left out. The result is kept for the report; the profiles themselves (bench/results/*.cpuprofile)
 * can be opened in a browser's developer tools.
 */
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { machine, printTable } from './measure.js'
import { IN_FLIGHT, PAYLOAD_BYTES, SOCKETS } from './scenarios/scenario.js'
import { build, openStand } from './stand.js'

export interface Share {
  what: string
  /** Of the busy time, 0 to 1. */
  share: number
}

export interface Profile {
  machine: Record<string, string>
  takenAt: string
  stages: { stage: string; busyShare: number; categories: Share[]; functions: Share[] }[]
}

interface CpuProfile {
  nodes: { id: number; callFrame: { functionName: string; url: string; lineNumber: number } }[]
  samples: number[]
  timeDeltas: number[]
}

type Frame = CpuProfile['nodes'][number]['callFrame']

const MESSAGES = 30_000
const CONNECTIONS = 1_000
const LISTED = 0.01

/** What V8 and Node's own C++ are called in a profile; the names have no file. */
const NATIVE: [RegExp, string][] = [
  [/^(writev|writeBuffer|writeUtf8String|writeLatin1String|writeAsciiString)$/, 'socket writes (syscall)'],
  [/^\(garbage collector\)$/, 'garbage collection'],
  [/^(parse|stringify)$/, 'JSON'],
  [/^(mask|unmask)$/, 'bufferutil'],
  [/^\(program\)$/, 'native code: reads, libuv, V8 itself'],
]

export function summarise(stage: string, { nodes, samples, timeDeltas }: CpuProfile): Profile['stages'][number] {
  const frames = new Map(nodes.map(({ id, callFrame }) => [id, callFrame]))
  const categories = new Map<string, number>()
  const functions = new Map<string, number>()
  let busy = 0
  let all = 0
  samples.forEach((id, i) => {
    const frame = frames.get(id)!
    const us = timeDeltas[i] ?? 0
    all += us
    // `dispatch` is the inspector, which answers us with the profile.
    if (frame.functionName === '(idle)' || (frame.functionName === 'dispatch' && !frame.url)) return
    busy += us
    const category = categoryOf(frame)
    categories.set(category, (categories.get(category) ?? 0) + us)
    const name = `${frame.functionName || '(anonymous)'} · ${frame.url ? `${placeOf(frame.url)}:${frame.lineNumber + 1}` : 'native'}`
    functions.set(name, (functions.get(name) ?? 0) + us)
  })
  const shares = (map: Map<string, number>) =>
    [...map]
      .map(([what, us]) => ({ what, share: us / busy }))
      .filter(({ share }) => share >= LISTED)
      .sort((a, b) => b.share - a.share)
  return { stage, busyShare: busy / all, categories: shares(categories), functions: shares(functions) }
}

function categoryOf({ functionName, url }: Frame): string {
  if (!url) return NATIVE.find(([pattern]) => pattern.test(functionName))?.[1] ?? 'builtins of V8 and Node'
  const place = placeOf(url)
  if (place.startsWith('node:')) return /stream|net|writable|readable/.test(place) ? 'node: sockets and streams' : 'node: the rest'
  return place.includes('/') && /^(src|plugins|routes)\//.test(place) ? `ours: ${place.split(':')[0]}` : place.split('/')[0]!
}

/** A package and its file, or a file of ours. */
function placeOf(url: string): string {
  const modules = url.lastIndexOf('node_modules/')
  if (modules >= 0) return url.slice(modules + 'node_modules/'.length)
  return url.replace(/^.*\/dist\/bench-\d+\//, '')
}

async function main(): Promise<void> {
  build()
  mkdirSync('bench/results', { recursive: true })
  const stand = await openStand()
  const stages: Profile['stages'] = []
  try {
    const place = await stand.open()
    const service = await place.start({ probe: true })
    const { generator } = stand
    const shape = { sockets: SOCKETS, inFlight: IN_FLIGHT, payloadBytes: PAYLOAD_BYTES, connections: CONNECTIONS }
    const add = () => generator.do('add', { urls: [service.ws], ...shape, messages: MESSAGES })
    const drain = () => generator.do('drain', { url: service.ws, sockets: SOCKETS, inFlight: IN_FLIGHT, limit: 10 })
    const day = () => generator.do('day', { inFlight: IN_FLIGHT, messages: MESSAGES / 2 })
    const profiled = async (stage: string, work: () => Promise<unknown>) => {
      const file = `bench/results/${stage}.cpuprofile`
      await service.probe('startProfile')
      await work()
      await service.probe('stopProfile', file)
      stages.push(summarise(stage, JSON.parse(readFileSync(file, 'utf8')) as CpuProfile))
    }
    await add()
    await drain()
    await profiled('add', add)
    await profiled('drain', drain)
    await generator.do('openMailboxes', { addUrl: service.ws, liveUrl: service.ws, ...shape })
    await generator.do('day', { inFlight: IN_FLIGHT, messages: MESSAGES / 10 })
    await profiled('day', day)
    await generator.do('closeMailboxes', undefined)
    await place.close()
  } finally {
    await stand.close()
  }
  const profile: Profile = { machine: machine(), takenAt: new Date().toISOString(), stages }
  writeFileSync('bench/results/profile.json', `${JSON.stringify(profile, undefined, 1)}\n`)
  const percent = (share: number) => `${(share * 100).toFixed(1)} %`
  for (const { stage, busyShare, categories, functions } of stages) {
    console.log(`${stage}: busy ${percent(busyShare)} of the time`)
    printTable(
      ['by category', 'of the busy time'],
      categories.map(({ what, share }) => [what, percent(share)]),
    )
    printTable(
      ['by function, its own time', ''],
      functions.slice(0, 20).map(({ what, share }) => [what, percent(share)]),
    )
  }
}

if (import.meta.filename === process.argv[1]) await main()
