import { resolveSchemas } from '../postgres/schemas.ts'
import { isMillraceError } from '../core/errors.ts'
import { isDatabaseUrl } from '../daemon/postgres-pool.ts'
import { textFlag } from './flag.ts'

/** Which database. `pg` reads the PG* variables itself, so with one of these the flag may be left out. */
export const databaseUrlFlag = textFlag({
  environment: ['MILLRACE_DATABASE_URL', 'DATABASE_URL'],
  parse(text) {
    if (!isDatabaseUrl(text)) throw new RangeError('postgres://user:password@host:5432/database')
    return text
  },
  required: true,
  requiredUnless: ['PGHOST', 'PGDATABASE', 'PGUSER'],
  summary: 'The database with the outbox. Without it PGHOST, PGPORT, PGDATABASE, PGUSER and PGPASSWORD count.',
  value: '<url>',
})

/** The schema of the outbox. */
export const outboxSchemaFlag = textFlag({
  byDefault: 'outbox',
  environment: ['MILLRACE_OUTBOX_SCHEMA'],
  parse: (text) => schemaName('outbox', text),
  summary: 'The schema that holds the outbox.',
  value: '<name>',
})

/** The schema of the inbox. */
export const inboxSchemaFlag = textFlag({
  byDefault: 'inbox',
  environment: ['MILLRACE_INBOX_SCHEMA'],
  parse: (text) => schemaName('inbox', text),
  summary: 'The schema that holds the inbox.',
  value: '<name>',
})

function schemaName(which: 'inbox' | 'outbox', text: string): string {
  try {
    return resolveSchemas({ [which]: text })[which]
  } catch (error) {
    if (isMillraceError(error, 'CONFIG_INVALID')) throw new RangeError(error.message, { cause: error })
    throw error
  }
}
