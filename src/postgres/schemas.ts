import { MillraceError } from '../core/errors.ts'
import { DEFAULT_SCHEMAS, quoteIdentifier } from './sql.ts'
import type { SchemaNames } from './sql.ts'

/**
 * The schema names with the defaults filled in. Names that Postgres would refuse, or cut to 63 bytes without a word,
 * are an error here.
 */
export function resolveSchemas(schemas: Partial<SchemaNames> = {}): SchemaNames {
  const resolved = { ...DEFAULT_SCHEMAS, ...withoutUndefined(schemas) }
  for (const which of ['outbox', 'inbox'] as const) {
    const problem = problemOf(resolved[which])
    if (problem === undefined) continue
    throw new MillraceError('CONFIG_INVALID', `schemas.${which}: ${problem}. Choose another schema name.`)
  }
  return resolved
}

/** The flags that name these schemas on the command line; empty for the defaults. */
export function schemaFlags(schemas: SchemaNames): string {
  return (['outbox', 'inbox'] as const)
    .filter((which) => schemas[which] !== DEFAULT_SCHEMAS[which])
    .map((which) => ` --${which}-schema '${schemas[which].replaceAll("'", `'\\''`)}'`)
    .join('')
}

/** A table or function of a schema, quoted for SQL. */
export function qualified(schema: string, name: string): string {
  return `${quoteIdentifier(schema)}.${quoteIdentifier(name)}`
}

function problemOf(name: unknown): string | undefined {
  if (typeof name !== 'string' || name === '') return 'a schema name is a string that is not empty'
  if (name.includes('\0') || !name.isWellFormed()) return 'the name holds a NUL or half of a surrogate pair'
  if (Buffer.byteLength(name) > 63) return `the name has ${Buffer.byteLength(name)} bytes and Postgres keeps 63`
  if (name.startsWith('pg_')) return 'Postgres keeps names that begin with pg_ for itself'
  return undefined
}

function withoutUndefined(schemas: Partial<SchemaNames>): Partial<SchemaNames> {
  return Object.fromEntries(Object.entries(schemas).filter(([, name]) => name !== undefined))
}
