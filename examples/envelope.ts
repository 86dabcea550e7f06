import { createHash, randomBytes, randomInt } from 'node:crypto'

/** An encrypted DIDComm v2 message in the general JSON serialization of a JWE: everything but the meaning. */
export interface Envelope {
  protected: string
  recipients: { header: { kid: string }; encrypted_key: string }[]
  iv: string
  ciphertext: string
  tag: string
}

// What a credential offer or a chat message weighs; base64url makes 0.5 to 8 KB of it.
const MIN_CIPHERTEXT_BYTES = 384
const MAX_CIPHERTEXT_BYTES = 6_144

const BASE58 = '123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz'

export function createEnvelope(recipientDid: string): Envelope {
  const kid = `${recipientDid}#${recipientDid.slice('did:key:'.length)}`
  const { keyBytes, ivBytes, tagBytes, header } = randomInt(2) === 0 ? authcrypt(kid) : anoncrypt(kid)
  return {
    protected: Buffer.from(JSON.stringify(header)).toString('base64url'),
    recipients: [{ header: { kid }, encrypted_key: random(keyBytes) }],
    iv: random(ivBytes),
    ciphertext: random(randomInt(MIN_CIPHERTEXT_BYTES, MAX_CIPHERTEXT_BYTES + 1)),
    tag: random(tagBytes),
  }
}

/** A did:key of an X25519 key; no one has the key. */
export function createDid(): string {
  return `did:key:z6LS${Array.from({ length: 44 }, () => BASE58[randomInt(BASE58.length)]).join('')}`
}

// A wrapped key is 8 bytes longer than the key; A256CBC-HS512 has a key of 64 bytes and a tag of 32.
function authcrypt(kid: string) {
  const skid = `${createDid()}#key-1`
  const header = {
    typ: 'application/didcomm-encrypted+json',
    alg: 'ECDH-1PU+A256KW',
    enc: 'A256CBC-HS512',
    skid,
    apu: Buffer.from(skid).toString('base64url'),
    ...keyAgreement(kid),
  }
  return { header, keyBytes: 72, ivBytes: 16, tagBytes: 32 }
}

function anoncrypt(kid: string) {
  const header = { typ: 'application/didcomm-encrypted+json', alg: 'ECDH-ES+A256KW', enc: 'XC20P', ...keyAgreement(kid) }
  return { header, keyBytes: 40, ivBytes: 24, tagBytes: 16 }
}

function keyAgreement(kid: string) {
  return { apv: createHash('sha256').update(kid).digest('base64url'), epk: { kty: 'OKP', crv: 'X25519', x: random(32) } }
}

function random(bytes: number): string {
  return randomBytes(bytes).toString('base64url')
}
