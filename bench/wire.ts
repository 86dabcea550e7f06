import { createHash, randomBytes } from 'node:crypto'
import { connect } from 'node:net'

/*
 * A WebSocket client for the load generator, which must cost less than what it measures: frames are made and masked once and
 * only digits are written over them, all frames of a turn of the event loop leave in one write, all sockets read into one buffer.
 */

export interface Wire {
  /** Leaves at the end of this turn. */
  send(frame: Buffer): void
  isOpen(): boolean
  /** Resolves when the socket is closed. */
  close(): Promise<void>
}

export interface WireOptions {
  onText(text: string): void
  /** With the close code, or 1006 where none came. */
  onClose?(code: number): void
  /** 127.0.0.x: one address has no more than 28,000 ports. */
  localAddress?: string
}

// Not zero: ws would leave out the unmasking, which every real frame costs.
const MASK = Buffer.from([0x37, 0xfa, 0x21, 0x3d])
const TEXT = 1
const CLOSE = 8
const PING = 9
const PONG = 10
const received = Buffer.allocUnsafe(1 << 18)

export function openWire(url: string, { onText, onClose = () => {}, localAddress }: WireOptions): Promise<Wire> {
  const { hostname, port, pathname, search } = new URL(url)
  return new Promise((resolve, reject) => {
    let isOpen = false
    let closeCode = 1006
    let outgoing: Buffer[] = []
    const parse = createParser((opcode, data, start, end) => {
      if (opcode === TEXT) onText(data.toString('utf8', start, end))
      else if (opcode === PING) wire.send(frame(PONG, data.subarray(start, end)))
      else if (opcode === CLOSE) {
        closeCode = end - start >= 2 ? data.readUInt16BE(start) : 1005
        wire.send(frame(CLOSE, data.subarray(start, end)))
      }
    })
    const key = randomBytes(16).toString('base64')
    const accept = createHash('sha1').update(`${key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`).digest('base64')
    let head = ''
    const socket = connect({
      host: hostname,
      port: Number(port),
      localAddress,
      noDelay: true,
      onread: {
        buffer: received,
        callback(length) {
          const data = received.subarray(0, length)
          if (isOpen) parse(data)
          else shakeHands(data)
          return true
        },
      },
    })
    socket.on('connect', () =>
      socket.write(
        `GET ${pathname}${search} HTTP/1.1\r\nHost: ${hostname}:${port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n` +
          `Sec-WebSocket-Key: ${key}\r\nSec-WebSocket-Version: 13\r\n\r\n`,
      ),
    )
    socket.on('error', reject) // what happens later is told by `close`
    socket.on('close', () => {
      if (!isOpen) return reject(new Error(`${url} closed the socket before it was open: ${head.slice(0, 200)}`))
      isOpen = false
      onClose(closeCode)
    })

    const flush = () => {
      const frames = outgoing
      outgoing = []
      if (socket.writable) socket.write(frames.length === 1 ? frames[0]! : Buffer.concat(frames))
    }
    const wire: Wire = {
      send(bytes) {
        if (outgoing.push(bytes) === 1) process.nextTick(flush)
      },
      isOpen: () => isOpen,
      close: () =>
        new Promise((done) => {
          if (!isOpen) return done()
          socket.once('close', () => done())
          wire.send(frame(CLOSE, Buffer.from([0x03, 0xe8])))
        }),
    }

    function shakeHands(data: Buffer): void {
      head += data.toString('latin1')
      const end = head.indexOf('\r\n\r\n')
      if (end < 0) return
      if (!head.startsWith('HTTP/1.1 101') || !head.includes(accept)) return void socket.destroy()
      isOpen = true
      resolve(wire)
      const rest = Buffer.from(head.slice(end + 4), 'latin1')
      if (rest.length > 0) parse(rest)
    }
  })
}

/** Frames of a server: unmasked, and whole (ws fragments nothing that it does not compress). */
function createParser(onFrame: (opcode: number, data: Buffer, start: number, end: number) => void): (chunk: Buffer) => void {
  let parts: Buffer[] = []
  let have = 0
  let needed = 0
  return (chunk) => {
    let data = chunk
    if (have > 0) {
      parts.push(Buffer.from(chunk))
      have += chunk.length
      if (have < needed) return
      data = Buffer.concat(parts)
      parts = []
      have = 0
    }
    let at = 0
    for (;;) {
      const left = data.length - at
      const short = left < 2 ? 0 : data[at + 1]!
      const headBytes = short === 127 ? 10 : short === 126 ? 4 : 2
      needed = headBytes
      if (left < headBytes) break
      if (!(data[at]! & 0x80)) throw new Error('a fragmented frame')
      const length = short === 127 ? Number(data.readBigUInt64BE(at + 2)) : short === 126 ? data.readUInt16BE(at + 2) : short
      needed = headBytes + length
      if (left < needed) break
      onFrame(data[at]! & 15, data, at + headBytes, at + needed)
      at += needed
    }
    if (at === data.length) return
    parts = [Buffer.from(data.subarray(at))]
    have = data.length - at
  }
}

function frame(opcode: number, content: Buffer): Buffer {
  const { length } = content
  const head = length < 126 ? 2 : length < 65_536 ? 4 : 10
  const bytes = Buffer.allocUnsafe(head + 4 + length)
  bytes[0] = 0x80 | opcode
  bytes[1] = 0x80 | (length < 126 ? length : length < 65_536 ? 126 : 127)
  if (head === 4) bytes.writeUInt16BE(length, 2)
  else if (head === 10) bytes.writeBigUInt64BE(BigInt(length), 2)
  MASK.copy(bytes, head)
  const start = head + 4
  for (let i = 0; i < length; i++) bytes[start + i] = content[i]! ^ MASK[i & 3]!
  return bytes
}

export const textFrame = (text: string): Buffer => frame(TEXT, Buffer.from(text))

/** What varies from call to call has always as many digits, and so its place in the frame. */
export const FIRST_CALL = 10_000_000
export const FIRST_N = 1_000_000
export const FIRST_CONNECTION = 100_000
const MARKS = { id: 98_765_431, connection: 987_653, n: 9_876_547 }

export type Template = (id: number, connection: number, n: number) => Buffer

export function createTemplate(text: (id: number, connection: number, n: number) => string): Template {
  const model = text(MARKS.id, MARKS.connection, MARKS.n)
  const bytes = textFrame(model)
  const start = bytes.length - Buffer.byteLength(model)
  const place = (mark: number) => {
    const at = model.indexOf(String(mark))
    return { start: start + at, end: at < 0 ? -1 : start + at + String(mark).length }
  }
  const [id, connection, n] = [place(MARKS.id), place(MARKS.connection), place(MARKS.n)]
  const write = (target: Buffer, { start: first, end }: { start: number; end: number }, value: number) => {
    for (let i = end - 1; i >= first && end > 0; i--) {
      target[i] = (48 + (value % 10)) ^ MASK[(i - start) & 3]!
      value = Math.floor(value / 10)
    }
  }
  return (idValue, connectionIndex, nIndex) => {
    const copy = Buffer.allocUnsafe(bytes.length)
    bytes.copy(copy)
    write(copy, id, idValue)
    write(copy, connection, FIRST_CONNECTION + connectionIndex)
    write(copy, n, FIRST_N + nIndex)
    return copy
  }
}
