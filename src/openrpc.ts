import type { Contract, Operation } from './contract.js'
import { errorTable } from './errors.js'

/** The document of `rpc.discover`. @see https://spec.open-rpc.org */
export function createOpenRpc(contract: Contract, version: string): object {
  return {
    openrpc: '1.3.2',
    info: {
      title: 'Message Pickup Repository',
      version,
      description: 'JSON-RPC 2.0 over WebSocket on /ws and on /. The same operations are REST below /v1.',
    },
    methods: Object.entries<Operation>(contract).map(([name, { summary, description, params, result, example }]) => ({
      name,
      summary,
      description,
      paramStructure: 'by-name',
      params: Object.entries(params.properties).map(([field, schema]) => ({
        name: field,
        required: params.required?.includes(field) ?? false,
        description: schema.description as string,
        schema,
      })),
      result: { name: 'result', schema: result },
      errors: Object.entries(errorTable).map(([error, { code }]) => ({ code, message: error })),
      examples: [
        {
          name: 'example',
          paramStructure: 'by-name',
          params: Object.entries(example.params).map(([field, value]) => ({ name: field, value })),
          result: { name: 'result', value: example.result },
        },
      ],
    })),
  }
}
