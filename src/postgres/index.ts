/**
 * Postgres: the ports that a driver fits as it is, the schemas' names, the migrator, and how `append` reaches the
 * transaction of whichever library the application uses.
 */
export { migrate, migrationSql, requireSchema } from './migrator.ts'
export type { MigrateOptions, MigrationReport } from './migrator.ts'
export { qualified, resolveSchemas, schemaFlags } from './schemas.ts'
export { DEFAULT_SCHEMAS, quoteIdentifier } from './sql.ts'
export type { PgClient, PgPool, SchemaNames, Sql, SqlResult } from './sql.ts'
export { openTransaction } from './transaction.ts'
export type { SqlTransaction, Transaction, TransactionAdapter } from './transaction.ts'
