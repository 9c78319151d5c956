/**
 * The ports to Postgres: the smallest shapes that the package needs, so that a `pg` pool, client or transaction fits as
 * it is and no driver's types are part of the public surface.
 */

/** Runs one parameterised statement. A `pg` client fits as it is. */
export interface Sql {
  query(text: string, params?: unknown[]): Promise<SqlResult>
}

/** What a statement gave back. */
export interface SqlResult {
  /** The shape of a row is known only to the statement that asked for it. */
  readonly rows: unknown[]
  readonly rowCount?: number | null
}

/** A client taken from a pool. A `pg.PoolClient` fits as it is. */
export interface PgClient extends Sql {
  /** Gives the client back; with `true` its connection is closed instead. */
  release(destroy?: boolean | Error): void
  on(event: 'error' | 'end', listener: (error?: Error) => void): unknown
  removeListener(event: 'error' | 'end', listener: (error?: Error) => void): unknown
}

/** A pool of connections. A `pg.Pool` fits as it is. */
export interface PgPool extends Sql {
  connect(): Promise<PgClient>
}

/** The names of the two schemas; see `millrace migrate --outbox-schema`, `--inbox-schema`. */
export interface SchemaNames {
  /** Default: `outbox`. */
  readonly outbox: string
  /** Default: `inbox`. */
  readonly inbox: string
}

/** The schemas unless somebody asks for others. */
export const DEFAULT_SCHEMAS: SchemaNames = Object.freeze({ outbox: 'outbox', inbox: 'inbox' })

/** Quotes an identifier for SQL: doubles the quotes, refuses NUL and the empty name. */
export function quoteIdentifier(name: string): string {
  if (name === '' || name.includes('\0')) throw new RangeError(`not a usable SQL identifier: ${JSON.stringify(name)}`)
  return `"${name.replaceAll('"', '""')}"`
}
