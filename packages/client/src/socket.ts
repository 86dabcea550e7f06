/** What the global WebSocket and that of `ws` have in common. */
export interface Socket {
  onopen: (() => void) | null
  onmessage: ((event: { data: unknown }) => void) | null
  onerror: ((event: { message?: string }) => void) | null
  onclose: ((event: { code: number; reason: string }) => void) | null
  readonly bufferedAmount: number
  send(text: string): void
  close(code?: number, reason?: string): void
  /** Without the closing handshake, which a dead peer never answers. */
  terminate?(): void
}

export type OpenSocket = (url: string, apiKey: string | undefined) => Socket
