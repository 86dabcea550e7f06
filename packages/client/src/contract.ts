import type { OperationName, Params, Result } from '../../../src/contract.js'

/**
 * What the contract of the service says, as types of values: the only thing that this package knows of the service. The
 * import is of types, so nothing of the service is bundled; in the published declarations `Methods` is written out
 * (build.ts), so neither do they need it.
 */

/** An encrypted envelope: a JSON object or a string. It comes back as it was given. */
export type Payload = object | string

/** The service handles payloads as text, in characters or bytes; its callers handle values. */
type PayloadText = Params<'addMessage'>['payload'] | Result<'takeFromQueue'>[number]['encryptedMessage']
type FromWire<T> = T extends PayloadText
  ? Payload
  : T extends readonly (infer Item)[]
    ? FromWire<Item>[]
    : T extends object
      ? { [Key in keyof T]: FromWire<T[Key]> }
      : T

export type Methods = { [Name in OperationName]: (params: FromWire<Params<Name>>) => Promise<FromWire<Result<Name>>> }

export type MethodName = keyof Methods
export type MethodParams<Name extends MethodName> = Parameters<Methods[Name]>[0]
export type MethodResult<Name extends MethodName> = Awaited<ReturnType<Methods[Name]>>
export type QueuedMessage = MethodResult<'takeFromQueue'>[number]
