/**
 * The insert into the outbox: one statement text for one row, and one for any number of them, with eight parameters. There
 * the payloads travel as one binary parameter that the server cuts up; the other columns as arrays in Postgres' own text
 * form, which every driver passes through.
 *
 * A list of VALUES with six parameters a row was the other candidate: the server spends about as long on parsing and
 * planning 6000 parameters as on the insert, drizzle spends five times as long on building them, and every length of
 * the list is another entry in pg_stat_statements. For one row it is the better one: planning seven function scans costs
 * the server three times the whole insert.
 *
 * The planner inlines `shard_of`. There is no RETURNING: the application's role may only insert. Function scans keep
 * the order of their arrays, so seq rises in the order of the events.
 */
import { MillraceError } from '../core/errors.ts'
import { qualified, schemaFlags } from '../postgres/schemas.ts'
import type { SchemaNames, Sql } from '../postgres/sql.ts'
import { failedTransaction } from '../postgres/transactions/pg.ts'
import type { EventRow } from './event-rows.ts'

/** More rows a statement gain nothing. */
const MAX_ROWS = 1_000
/** Postgres takes 1 GB in one message; a statement stays far below, for the memory of both sides. */
const MAX_BYTES = 8 * 1024 * 1024

const IN_FAILED_TRANSACTION = '25P02'
/** Undefined table, schema, function. */
const NOT_MIGRATED = new Set<unknown>(['42P01', '3F000', '42883'])

/** Writes rows into the outbox of one schema. */
export class AppendStatement {
  readonly #one: string
  readonly #many: string
  readonly #schemas: SchemaNames

  constructor(schemas: SchemaNames) {
    this.#schemas = schemas
    const insert = `insert into ${qualified(schemas.outbox, 'record')} (shard, id, topic, key, type, payload, headers) `
    this.#one =
      insert +
      `values (${qualified(schemas.outbox, 'shard_of')}($1::text), $2::uuid, $3::text, $4::text, $5::text, $6::bytea, $7::jsonb)`
    this.#many =
      insert +
      `select ${qualified(schemas.outbox, 'shard_of')}(coalesce(v.key, v.id::text)), v.id, v.topic, v.key, v.type, ` +
      'substring($1::bytea from v.start for v.bytes), v.headers::jsonb ' +
      'from unnest($2::text::uuid[], $3::text::text[], $4::text::text[], $5::text::text[], $6::text::text[], ' +
      '$7::text::integer[], $8::text::integer[]) as v (id, topic, key, type, headers, start, bytes)'
  }

  /** Writes the rows, in order. It asks for the transaction before each statement: it may have ended in between. */
  async run(transaction: () => Sql, rows: readonly EventRow[]): Promise<void> {
    for (let from = 0; from < rows.length;) {
      let bytes = 0
      let to = from
      while (to < rows.length && to - from < MAX_ROWS && (to === from || bytes < MAX_BYTES)) {
        bytes += (rows[to++] as EventRow).sizeBytes
      }
      try {
        if (to - from === 1) await transaction().query(this.#one, parametersOfOne(rows[from] as EventRow))
        else await transaction().query(this.#many, parameters(rows, from, to))
      } catch (error) {
        throw explained(error, this.#schemas)
      }
      from = to
    }
  }
}

function explained(error: unknown, schemas: SchemaNames): unknown {
  const { code } = error as { code?: unknown }
  // A driver learns that its transaction failed one packet after the error that says so.
  if (code === IN_FAILED_TRANSACTION) return failedTransaction(error)
  if (!NOT_MIGRATED.has(code)) return error
  const flags = schemaFlags(schemas)
  return new MillraceError(
    'SCHEMA_MISSING',
    `the database has no outbox in the schema ${schemas.outbox}; run: npx millrace migrate --database-url …${flags}`,
    { cause: error },
  )
}

function parametersOfOne({ id, topic, key, type, payload, headers }: EventRow): unknown[] {
  return [key ?? id, id, topic, key, type, payload, headers]
}

function parameters(rows: readonly EventRow[], from: number, to: number): unknown[] {
  const payloads: Buffer[] = []
  const ids: string[] = []
  const starts: number[] = []
  const lengths: number[] = []
  const topic = new ArrayText()
  const key = new ArrayText()
  const type = new ArrayText()
  const headers = new ArrayText()
  let start = 1 // SQL counts from 1
  for (let index = from; index < to; index++) {
    const row = rows[index] as EventRow
    payloads.push(row.payload)
    ids.push(row.id)
    starts.push(start)
    lengths.push(row.payload.length)
    start += row.payload.length
    topic.add(row.topic)
    key.add(row.key)
    type.add(row.type)
    headers.add(row.headers)
  }
  const payload = payloads.length === 1 ? payloads[0] : Buffer.concat(payloads, start - 1)
  const columns = [topic.text(), key.text(), type.text(), headers.text()]
  return [payload, `{${ids.join()}}`, ...columns, `{${starts.join()}}`, `{${lengths.join()}}`]
}

/** A text array as Postgres writes it. Neighbours are often the same, and are quoted once. */
class ArrayText {
  #text = ''
  #last: string | null = null
  #quoted = 'null'

  add(value: string | null): void {
    if (value !== this.#last) {
      this.#last = value
      this.#quoted = value === null ? 'null' : `"${value.replace(/["\\]/g, '\\$&')}"`
    }
    this.#text += this.#text === '' ? this.#quoted : `,${this.#quoted}`
  }

  text(): string {
    return `{${this.#text}}`
  }
}
