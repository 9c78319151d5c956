/** Where the columns of `outbox.record` stand in a tuple, as the server's Relation message says. */
import { MillraceError } from '../../../core/errors.ts'
import { quoteIdentifier } from '../../../postgres/sql.ts'

/** A column as a Relation message names it. */
export interface RelationColumn {
  readonly name: string
  readonly type: number
}

/** The position of each column that is read, and how many there are. */
export interface RecordColumns {
  readonly count: number
  readonly headers: number
  readonly id: number
  readonly key: number
  readonly payload: number
  readonly seq: number
  readonly shard: number
  readonly topic: number
  readonly tx: number
  readonly type: number
}

/** The oids of the types, which no server ever changes. */
const TYPES = {
  headers: { name: 'jsonb', oid: 3802 },
  id: { name: 'uuid', oid: 2950 },
  key: { name: 'text', oid: 25 },
  payload: { name: 'bytea', oid: 17 },
  seq: { name: 'bigint', oid: 20 },
  shard: { name: 'smallint', oid: 21 },
  topic: { name: 'text', oid: 25 },
  tx: { name: 'xid8', oid: 5069 },
  type: { name: 'text', oid: 25 },
} as const

/** Finds the columns by name: others may stand between them. Throws PUBLICATION_INVALID when one is missing or altered. */
export function recordColumns(schema: string, columns: readonly RelationColumn[]): RecordColumns {
  const place = (name: keyof typeof TYPES): number => {
    const at = columns.findIndex((column) => column.name === name)
    const { name: type, oid } = TYPES[name]
    const table = `${quoteIdentifier(schema)}.record`
    if (at === -1)
      throw publicationInvalid(
        `the publication does not show column ${name} of ${table}: publish the table without a column list`,
        { column: name },
      )
    if (columns[at]?.type !== oid)
      throw publicationInvalid(
        `column ${name} of ${table} is not of type ${type} any more: alter it back, then start the relay again`,
        { column: name, oid: columns[at]?.type },
      )
    return at
  }
  return {
    count: columns.length,
    headers: place('headers'),
    id: place('id'),
    key: place('key'),
    payload: place('payload'),
    seq: place('seq'),
    shard: place('shard'),
    topic: place('topic'),
    tx: place('tx'),
    type: place('type'),
  }
}

/** The publication shows something else than the outbox, or not all of it. */
export function publicationInvalid(message: string, details: Readonly<Record<string, unknown>> = {}): MillraceError {
  return new MillraceError('PUBLICATION_INVALID', message, { details })
}
