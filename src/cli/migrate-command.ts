import { createPostgresPool, requireDatabase } from '../daemon/postgres-pool.ts'
import { migrate } from '../postgres/migrator.ts'
import { defineCommand } from './command.ts'
import { databaseUrlFlag, inboxSchemaFlag, outboxSchemaFlag } from './database-flags.ts'
import { EXIT } from './exit-code.ts'
import { integerFlag, switchFlag } from './flag.ts'

/** `millrace migrate`: brings the schemas to this package's version. */
export const migrateCommand = defineCommand({
  name: 'migrate',
  summary: 'Creates or upgrades the outbox and inbox schemas in a database.',
  description: `Safe to run at every deploy and from many places at once: one migrator works, the others wait and
find nothing to do. Each migration is one transaction. A service that only produces and one that only consumes
run the same command.`,
  examples: [
    'millrace migrate --database-url postgres://shop@db/shop',
    'millrace migrate --database-url postgres://shop@db/shop --dry-run > migration.sql',
  ],
  flags: {
    databaseUrl: databaseUrlFlag,
    dryRun: switchFlag({
      environment: ['MILLRACE_DRY_RUN'],
      summary: 'Change nothing; print the SQL that this database still needs.',
    }),
    inboxSchema: inboxSchemaFlag,
    lockTimeoutMs: integerFlag({
      byDefault: '60000',
      environment: ['MILLRACE_LOCK_TIMEOUT_MS'],
      max: 86_400_000,
      min: 1,
      summary: 'How long to wait for another migrator, and for each lock that a migration needs.',
      value: '<ms>',
    }),
    outboxSchema: outboxSchemaFlag,
  },
  async run({ databaseUrl, dryRun = false, inboxSchema, lockTimeoutMs, outboxSchema }, io) {
    const pool = await createPostgresPool({
      applicationName: 'millrace-migrate',
      databaseUrl,
      max: 1,
      onError: () => undefined, // the next statement fails with the reason
    })
    try {
      await requireDatabase(pool)
      const report = await migrate(pool, {
        dryRun,
        ...(lockTimeoutMs === undefined ? {} : { lockTimeoutMs }),
        schemas: {
          ...(inboxSchema === undefined ? {} : { inbox: inboxSchema }),
          ...(outboxSchema === undefined ? {} : { outbox: outboxSchema }),
        },
      })
      if (dryRun) io.out(report.sql)
      const changes = dryRun ? report.pending : report.applied
      const what = changes.length === 0 ? 'nothing to do' : `${dryRun ? 'to apply' : 'applied'} ${changes.join(', ')}`
      // Beside the SQL of a dry run, the summary must not end up in the file it is piped to.
      const line = `millrace migrate: ${what}; the schema has version ${report.version}\n`
      if (dryRun) io.err(line)
      else io.out(line)
      return EXIT.ok
    } finally {
      await pool.end()
    }
  },
})
