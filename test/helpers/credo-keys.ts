import {
  createCipheriv,
  createDecipheriv,
  createHash,
  createPrivateKey,
  createPublicKey,
  diffieHellman,
  generateKeyPairSync,
  randomBytes,
  randomUUID,
  sign,
  verify,
} from 'node:crypto'
import { Kms, type AgentContext } from '@credo-ts/core'
import { hsalsa, xsalsa20poly1305 } from '@noble/ciphers/salsa.js'
import { blake2b } from '@noble/hashes/blake2.js'

/*
 * Key management for Credo agents in tests: as much of Credo's KeyManagementService as DIDComm v1 needs. Its usual backend is
 * a native library that is downloaded at install from elsewhere. Envelopes are those of libsodium: crypto_box (X25519,
 * HSalsa20, XSalsa20-Poly1305), its sealed form, and ChaCha20-Poly1305. Nothing here is meant for keys of value.
 */

interface Key {
  crv: 'Ed25519' | 'X25519'
  secret: Buffer
  publicJwk: any
}

const ED25519_PRIVATE = Buffer.from('302e020100300506032b657004220420', 'hex')
const X25519_PRIVATE = Buffer.from('302e020100300506032b656e04220420', 'hex')
const X25519_PUBLIC = Buffer.from('302a300506032b656e032100', 'hex')
const SIGMA = words(Buffer.from('expand 32-byte k'))

const privateKey = (prefix: Buffer, secret: Uint8Array) =>
  createPrivateKey({ key: Buffer.concat([prefix, secret]), format: 'der', type: 'pkcs8' })
const publicX25519 = (raw: Uint8Array) => createPublicKey({ key: Buffer.concat([X25519_PUBLIC, raw]), format: 'der', type: 'spki' })
const rawPublic = (secret: Uint8Array) =>
  Buffer.from(createPublicKey(privateKey(X25519_PRIVATE, secret)).export({ format: 'jwk' }).x!, 'base64url')

function words(bytes: Uint8Array): Uint32Array {
  const copy = Uint8Array.from(bytes)
  return new Uint32Array(copy.buffer)
}

/** [libsodium crypto_box_beforenm] */
function boxKey(secret: Uint8Array, theirs: Uint8Array): Uint8Array {
  const shared = diffieHellman({ privateKey: privateKey(X25519_PRIVATE, secret), publicKey: publicX25519(theirs) })
  const out = new Uint32Array(8)
  hsalsa(SIGMA, words(shared), new Uint32Array(4), out)
  return new Uint8Array(out.buffer)
}

/** [libsodium crypto_box_seal] */
const sealNonce = (ephemeral: Uint8Array, theirs: Uint8Array) => blake2b(Buffer.concat([ephemeral, theirs]), { dkLen: 24 })

/** Several agents may share one: instances of one mediator have the same keys. */
export function createKeys(): any {
  const keys = new Map<string, Key>()

  const find = (keyId: string): Key => {
    const key = keys.get(keyId)
    if (!key) throw new Kms.KeyManagementKeyNotFoundError(keyId, ['test'])
    return key
  }
  /** An Ed25519 key used for agreement. [libsodium crypto_sign_ed25519_sk_to_curve25519] */
  const agreementSecret = ({ crv, secret }: Key) =>
    crv === 'X25519' ? secret : createHash('sha512').update(secret).digest().subarray(0, 32)
  const store = (crv: Key['crv'], secret: Buffer, x: string, keyId: string = randomUUID()) => {
    const publicJwk = { kty: 'OKP', crv, x, kid: keyId }
    keys.set(keyId, { crv, secret, publicJwk })
    return { keyId, publicJwk }
  }

  return {
    backend: 'test',
    isOperationSupported: (_: AgentContext, { operation, type, encryption, decryption, algorithm }: any) =>
      operation === 'createKey'
        ? type.kty === 'OKP'
        : operation === 'encrypt' || operation === 'decrypt'
          ? ['C20P', 'XSALSA20-POLY1305'].includes((encryption ?? decryption).algorithm)
          : operation === 'sign' || operation === 'verify'
            ? ['EdDSA', 'Ed25519'].includes(algorithm)
            : true,
    getPublicKey: async (_: AgentContext, keyId: string) => keys.get(keyId)?.publicJwk ?? null,
    async createKey(_: AgentContext, { type, keyId }: any) {
      const { privateKey: made } = type.crv === 'Ed25519' ? generateKeyPairSync('ed25519') : generateKeyPairSync('x25519')
      const { d, x } = made.export({ format: 'jwk' })
      return store(type.crv, Buffer.from(d!, 'base64url'), x!, keyId)
    },
    importKey: async (_: AgentContext, { privateJwk }: any) =>
      store(privateJwk.crv, Buffer.from(privateJwk.d, 'base64url'), privateJwk.x, privateJwk.kid),
    deleteKey: async (_: AgentContext, { keyId }: any) => keys.delete(keyId),
    randomBytes: (_: AgentContext, { length }: any) => new Uint8Array(randomBytes(length)),
    async sign(_: AgentContext, { keyId, data }: any) {
      return { signature: new Uint8Array(sign(null, data, privateKey(ED25519_PRIVATE, find(keyId).secret))) }
    },
    async verify(_: AgentContext, { key, data, signature }: any) {
      const publicJwk = key.publicJwk ?? find(key.keyId).publicJwk
      const isVerified = verify(
        null,
        data,
        createPublicKey({ key: { kty: 'OKP', crv: 'Ed25519', x: publicJwk.x }, format: 'jwk' }),
        signature,
      )
      return isVerified ? { verified: true, publicJwk } : { verified: false }
    },
    async encrypt(_: AgentContext, { key, encryption, data }: any) {
      if (encryption.algorithm === 'C20P') {
        const iv = encryption.iv ?? randomBytes(12)
        const cipher = createCipheriv('chacha20-poly1305', Buffer.from(key.privateJwk.k, 'base64url'), iv, { authTagLength: 16 })
        if (encryption.aad) cipher.setAAD(encryption.aad, { plaintextLength: data.length })
        const encrypted = new Uint8Array(Buffer.concat([cipher.update(data), cipher.final()]))
        return { encrypted, iv: new Uint8Array(iv), tag: new Uint8Array(cipher.getAuthTag()) }
      }
      const { keyId, externalPublicJwk } = key.keyAgreement
      const theirs = Buffer.from(externalPublicJwk.x, 'base64url')
      if (keyId) {
        const iv = new Uint8Array(randomBytes(24))
        return { encrypted: xsalsa20poly1305(boxKey(agreementSecret(find(keyId)), theirs), iv).encrypt(data), iv }
      }
      const secret = randomBytes(32)
      const ephemeral = rawPublic(secret)
      const sealed = xsalsa20poly1305(boxKey(secret, theirs), sealNonce(ephemeral, theirs)).encrypt(data)
      return { encrypted: new Uint8Array(Buffer.concat([ephemeral, sealed])) }
    },
    async decrypt(_: AgentContext, { key, decryption, encrypted }: any) {
      if (decryption.algorithm === 'C20P') {
        const decipher = createDecipheriv('chacha20-poly1305', Buffer.from(key.privateJwk.k, 'base64url'), decryption.iv, {
          authTagLength: 16,
        })
        if (decryption.aad) decipher.setAAD(decryption.aad, { plaintextLength: encrypted.length })
        decipher.setAuthTag(decryption.tag)
        return { data: new Uint8Array(Buffer.concat([decipher.update(encrypted), decipher.final()])) }
      }
      const { keyId, externalPublicJwk } = key.keyAgreement
      const secret = agreementSecret(find(keyId))
      if (externalPublicJwk) {
        const theirs = Buffer.from(externalPublicJwk.x, 'base64url')
        return { data: xsalsa20poly1305(boxKey(secret, theirs), decryption.iv).decrypt(encrypted) }
      }
      const ephemeral = encrypted.slice(0, 32)
      return { data: xsalsa20poly1305(boxKey(secret, ephemeral), sealNonce(ephemeral, rawPublic(secret))).decrypt(encrypted.slice(32)) }
    },
  }
}
