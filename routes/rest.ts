import { isUtf8 } from 'node:buffer'
import { Type, type TObject, type TSchema } from '@sinclair/typebox'
import type { FastifyInstance, FastifyRequest, FastifySchema } from 'fastify'
import type { Access } from '../src/access.js'
import type { Call, CallResult } from '../src/calls.js'
import { CallError, errorTable } from '../src/errors.js'
import { parseJson, type ParsedJson } from '../src/json.js'
import type { Caller } from '../src/pickup.js'

const errorAnswer = Type.Object(
  {
    error: Type.Object({
      code: Type.Integer({ description: 'The JSON-RPC code.' }),
      message: Type.String(),
      data: Type.Object({
        code: Type.Union(Object.keys(errorTable).map((name) => Type.Literal(name))),
        retryable: Type.Boolean({ description: 'Whether the same call may succeed when it is made again.' }),
        field: Type.Optional(Type.String({ description: 'The parameter that was wrong.' })),
        limit: Type.Optional(Type.Number({ description: 'The limit that was passed.' })),
      }),
    }),
  },
  { title: 'Error', description: 'The call failed, and why.' },
)

/** The REST twin of every row of the contract, and the administration, below /v1. */
export default async function restRoutes(app: FastifyInstance): Promise<void> {
  const { calls, administration, limits } = app.pickup

  // The call checks its parameters, with the same words on every transport; the schemas of the routes are for the docs.
  app.setValidatorCompiler(() => () => true)
  app.setSerializerCompiler(() => (body) => ((body as CallResult).text ? (body as CallResult).text : JSON.stringify(body)))
  app.removeContentTypeParser('text/plain') // Fastify's own
  app.addContentTypeParser('application/json', { parseAs: 'buffer' }, async (_request: FastifyRequest, body: Buffer) => {
    if (body.length === 0) return undefined
    if (!isUtf8(body)) throw new CallError('parse_error', 'Parse error: this is not UTF-8.')
    return parseJson(body, limits.maxDepth, 'body')
  })

  for (const call of calls.byName.values()) serve(app, call, 'mediator', tagOf(call.operation.http), () => ({}))
  for (const call of administration.byName.values()) serve(app, call, 'admin', 'administration', ({ client }) => ({ client }))
}

function serve(app: FastifyInstance, call: Call, access: Access, tag: string, callerOf: (request: FastifyRequest) => Caller): void {
  const [method, url] = call.operation.http.split(' ') as [string, string]
  const bodyIsRead = method === 'POST' || method === 'PUT'
  app.route({
    method,
    url,
    config: { access },
    schema: describe(call, url, bodyIsRead, tag),
    handler: (request) => {
      const { value, texts } = (request.body as ParsedJson | undefined) ?? { value: {} }
      const given = bodyIsRead ? value : fromQuery(request.query as object, call.operation.params)
      if (typeof given !== 'object' || given === null || Array.isArray(given)) {
        throw new CallError('invalid_params', 'The body must be a JSON object with the parameters by name.', { field: 'body' })
      }
      return new Promise<CallResult>((resolve, reject: (error: Error) => void) => {
        call.run({ ...given, ...(request.params as object) }, texts?.[0]?.payload, callerOf(request), (error, result) =>
          result ? resolve(result) : reject(error as Error),
        )
      })
    },
  })
}

/** A query is all texts: what is to be a whole number and looks like one is one. */
function fromQuery(query: object, { properties }: TObject): object {
  const isNumber = ([field, text]: [string, unknown]) =>
    properties[field]?.type === 'integer' && typeof text === 'string' && /^-?\d+$/.test(text)
  return Object.fromEntries(Object.entries(query).map((entry) => (isNumber(entry) ? [entry[0], Number(entry[1])] : entry)))
}

function tagOf(http: string): string {
  return http.endsWith('live-session') ? 'live sessions' : http.endsWith('push-token') ? 'pushes' : 'messages'
}

function describe({ name, operation }: Call, url: string, bodyIsRead: boolean, tag: string): FastifySchema & Record<string, unknown> {
  const { summary, description, params, result, example } = operation
  const inPath = url.split('/').flatMap((part) => (part.startsWith(':') ? [part.slice(1)] : []))
  const fields = Object.keys(params.properties)
  const pick = (names: string[]) => {
    const properties: Record<string, TSchema> = {}
    for (const field of names) {
      const value = (example.params as Record<string, unknown>)[field]
      properties[field] =
        value === undefined || (bodyIsRead && !inPath.includes(field))
          ? params.properties[field]!
          : { ...params.properties[field]!, examples: [value] }
    }
    return { type: 'object', properties, required: names.filter((field) => params.required?.includes(field)) }
  }
  const elsewhere = pick(fields.filter((field) => !inPath.includes(field)))
  const exampleBody = Object.fromEntries(Object.entries(example.params).filter(([field]) => !inPath.includes(field)))
  // @fastify/swagger leaves out the content of an answer whose type is null.
  const answer = {
    ...(result.type === 'null' ? { enum: [null] } : result),
    description: result.description ?? 'The result.',
    examples: [example.result],
  }
  return {
    operationId: name,
    summary,
    description,
    tags: [tag],
    params: pick(inPath),
    ...(bodyIsRead ? { body: { ...elsewhere, examples: [exampleBody] } } : { querystring: elsewhere }),
    response: { 200: answer, default: errorAnswer },
  }
}
