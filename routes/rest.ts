import { isUtf8 } from 'node:buffer'
import { Type, type TSchema } from '@sinclair/typebox'
import type { FastifyInstance, FastifyRequest, FastifySchema } from 'fastify'
import type { Call, CallResult } from '../src/calls.js'
import { CallError, errorTable } from '../src/errors.js'
import { parseJson, type ParsedJson } from '../src/json.js'

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

/** The REST twin of every row of the contract, below /v1. */
export default async function restRoutes(app: FastifyInstance): Promise<void> {
  const { calls, limits } = app.pickup

  // The call checks its parameters, with the same words on every transport; the schemas of the routes are for the docs.
  app.setValidatorCompiler(() => () => true)
  app.setSerializerCompiler(() => (body) => ((body as CallResult).text ? (body as CallResult).text : JSON.stringify(body)))
  app.removeContentTypeParser('text/plain') // Fastify's own
  app.addContentTypeParser('application/json', { parseAs: 'buffer' }, async (_request: FastifyRequest, body: Buffer) => {
    if (body.length === 0) return undefined
    if (!isUtf8(body)) throw new CallError('parse_error', 'Parse error: this is not UTF-8.')
    return parseJson(body.toString(), limits.maxDepth, 'body')
  })

  for (const call of calls.byName.values()) {
    const [method, url] = call.operation.http.split(' ') as [string, string]
    const bodyIsRead = method === 'POST' || method === 'PUT'
    app.route({
      method,
      url,
      schema: describe(call, url, bodyIsRead),
      handler: (request) => {
        const { value, payloads } = (request.body as ParsedJson | undefined) ?? { value: {} }
        const given = bodyIsRead ? value : request.query
        if (typeof given !== 'object' || given === null || Array.isArray(given)) {
          throw new CallError('invalid_params', 'The body must be a JSON object with the parameters by name.', { field: 'body' })
        }
        return call.run({ ...given, ...(request.params as object) }, payloads?.get(0), {})
      },
    })
  }
}

function describe({ name, operation }: Call, url: string, bodyIsRead: boolean): FastifySchema & Record<string, unknown> {
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
    tags: [url.endsWith('live-session') ? 'live sessions' : url.endsWith('push-token') ? 'pushes' : 'messages'],
    params: pick(inPath),
    ...(bodyIsRead ? { body: { ...elsewhere, examples: [exampleBody] } } : { querystring: elsewhere }),
    response: { 200: answer, default: errorAnswer },
  }
}
