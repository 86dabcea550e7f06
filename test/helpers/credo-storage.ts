import { JsonTransformer, RecordDuplicateError, RecordNotFoundError, type AgentContext } from '@credo-ts/core'

interface Row {
  value: Record<string, unknown>
  tags: Record<string, unknown>
}

/** Records of Credo agents, in memory. Several agents may share one: instances of one mediator have the same records. */
export function createStorage(): any {
  const rows = new Map<string, Row>()
  const nameOf = (type: string, id: string) => `${type}/${id}`
  const toRow = (record: any): Row => ({ value: JsonTransformer.toJSON(record) as Row['value'], tags: structuredClone(record.getTags()) })
  const toRecord = (recordClass: any, { value, tags }: Row) => {
    const record: any = JsonTransformer.fromJSON(structuredClone(value), recordClass)
    record.replaceTags(structuredClone(tags))
    return record
  }
  const missing = ({ type, id }: { type: string; id: string }) => new RecordNotFoundError(`no ${type} with id ${id}`, { recordType: type })
  const all = (recordClass: any) => [...rows].filter(([name]) => name.startsWith(`${recordClass.type}/`)).map(([, row]) => row)
  const mustExist = (record: any) => {
    if (!rows.has(nameOf(record.type, record.id))) throw missing(record)
  }

  return {
    supportsCursorPagination: false,
    async save(_: AgentContext, record: any) {
      const name = nameOf(record.type, record.id)
      if (rows.has(name)) throw new RecordDuplicateError(`${name} exists`, { recordType: record.type })
      record.updatedAt = new Date()
      rows.set(name, toRow(record))
    },
    async update(_: AgentContext, record: any) {
      mustExist(record)
      record.updatedAt = new Date()
      rows.set(nameOf(record.type, record.id), toRow(record))
    },
    async delete(_: AgentContext, record: any) {
      mustExist(record)
      rows.delete(nameOf(record.type, record.id))
    },
    async deleteById(_: AgentContext, { type }: any, id: string) {
      mustExist({ type, id })
      rows.delete(nameOf(type, id))
    },
    async getById(_: AgentContext, recordClass: any, id: string) {
      const row = rows.get(nameOf(recordClass.type, id))
      if (!row) throw missing({ type: recordClass.type, id })
      return toRecord(recordClass, row)
    },
    getAll: async (_: AgentContext, recordClass: any) => all(recordClass).map((row) => toRecord(recordClass, row)),
    findByQuery: async (_: AgentContext, recordClass: any, query: any, { limit = Infinity, offset = 0 }: any = {}) =>
      all(recordClass)
        .filter(({ tags }) => matches(tags, query))
        .slice(offset, offset + limit)
        .map((row) => toRecord(recordClass, row)),
  }
}

function matches(tags: Row['tags'], { $and, $or, $not, ...wanted }: any): boolean {
  if ($and && !$and.every((query: any) => matches(tags, query))) return false
  if ($or && !$or.some((query: any) => matches(tags, query))) return false
  if ($not && matches(tags, $not)) return false
  return Object.entries(wanted).every(([name, value]) => {
    if (value === undefined) return true
    const tag = tags[name]
    return Array.isArray(value) ? Array.isArray(tag) && value.every((one) => tag.includes(one)) : tag === value
  })
}
