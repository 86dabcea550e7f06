import t from 'tap'
import { formatId, MAX_TAG, parseId } from '../plugins/storage/message-id.js'

const TAGS = [0, 1, 36 ** 5 - 1, 36 ** 5, MAX_TAG - 1]

t.test('every id is one that a DIDComm message may have', async (t) => {
  // Aries RFC 0008
  for (const tag of TAGS) for (const seq of ['1', '9'.repeat(18)]) t.match(formatId(seq, tag), /^[-_./a-zA-Z0-9]{8,64}$/)
})

t.test('an id says which message it is, and so does the shorter one that it was before', async (t) => {
  for (const tag of TAGS) {
    t.same(parseId(formatId('7', tag)), { seq: '7', tag })
    t.same(parseId(`7-${tag.toString(36)}`), { seq: '7', tag })
  }
})

t.test('what is no id of ours names nothing', async (t) => {
  for (const id of ['', '7', '7-', '-abcdef', '7-zzzzzz', '7-abcdefg', '7-ABCDEF', '1234567890123456789-abcdef'])
    t.equal(parseId(id), undefined)
})
