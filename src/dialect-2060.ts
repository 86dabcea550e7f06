/**
 * What the published client of 2060-io/message-pickup-repository insists on (it throws otherwise). It can pass nothing but
 * a URL, so it asks for this dialect with `?dialect=2060`.
 */
export function dialect2060(method: string, value: unknown): string | undefined {
  switch (method) {
    case 'addMessage':
      return JSON.stringify({ messageId: value })
    case 'removeMessages':
    case 'removeAllMessages':
      return 'true'
    case 'getLiveSession':
      return value === true ? 'true' : 'false'
    default:
      return undefined
  }
}
