import { createPostgresPool, requireDatabase } from '../daemon/postgres-pool.ts'
import { type CheckpointGroup, type CheckpointReport, reportCheckpoints } from '../outbox-relay/checkpoint-report.ts'
import { schemaFlag } from '../outbox-relay/certificate.ts'
import { type ReAnchorReport, reAnchor } from '../outbox-relay/re-anchor.ts'
import { requireSchema } from '../postgres/migrator.ts'
import { resolveSchemas } from '../postgres/schemas.ts'
import type { PgPool, SchemaNames } from '../postgres/sql.ts'
import { type CommandIo, defineCommand } from './command.ts'
import { databaseUrlFlag, outboxSchemaFlag } from './database-flags.ts'
import { EXIT } from './exit-code.ts'
import { integerFlag, switchFlag, textFlag } from './flag.ts'

/** `millrace checkpoint show`: how far each shard is published. */
export const checkpointShowCommand = defineCommand({
  name: 'checkpoint show',
  summary: 'Shows the newest checkpoint of each shard, and whether this database may go on from it.',
  description: `Shards with the same checkpoint are one entry. A checkpoint that is not certified was not written by this
database: it came with a dump or a logical copy, and a relay refuses it; millrace checkpoint re-anchor is the way
on. Exit 0 when a relay would start from what is shown, 1 when it would refuse.`,
  examples: ['millrace checkpoint show --database-url postgres://relay@db/shop', 'millrace checkpoint show --json'],
  flags: {
    databaseUrl: databaseUrlFlag,
    json: switchFlag({ environment: ['MILLRACE_JSON'], summary: 'One JSON object.' }),
    outboxSchema: outboxSchemaFlag,
  },
  async run({ json = false, ...flags }, io) {
    return withOutbox(flags, async (pool, schemas) => {
      const report = await reportCheckpoints(pool, schemas)
      io.out(json ? `${JSON.stringify(report)}\n` : describe(report))
      return report.sound ? EXIT.ok : EXIT.failure
    })
  },
})

/** `millrace checkpoint re-anchor`: publish again what an outbox holds. */
export const checkpointReAnchorCommand = defineCommand({
  name: 'checkpoint re-anchor',
  summary: 'Lets the next relay publish again everything the outbox holds; consumers drop what they know.',
  description: `For an outbox that came with a dump and restore or a logical copy, whose checkpoint a relay refuses
(CHECKPOINT_UNCERTIFIED), or whose sequence stayed behind (SEQUENCE_ALTERED). It counts first and asks; then it runs
one transaction, and refuses while a relay holds a shard. Records that this database has not yet passed in its
transaction ids are written again once, which needs that much space. Appends go on meanwhile, unless the sequence must
be set: then they wait.`,
  examples: [
    'millrace checkpoint re-anchor --database-url postgres://owner@db/shop --dry-run',
    'millrace checkpoint re-anchor --yes',
    'millrace checkpoint re-anchor --from 2026-03-01T12:00:00Z',
  ],
  flags: {
    databaseUrl: databaseUrlFlag,
    dryRun: switchFlag({
      environment: ['MILLRACE_DRY_RUN'],
      summary: 'Change nothing; print the count and the SQL.',
    }),
    from: textFlag({
      environment: ['MILLRACE_FROM'],
      parse(text) {
        if (!/^\d{4}-\d\d-\d\dT.*(Z|[+-]\d\d:\d\d)$/.test(text) || Number.isNaN(Date.parse(text))) {
          throw new RangeError('a time with its zone, such as 2026-03-01T12:00:00Z')
        }
        return text
      },
      summary: 'Only records of this time or later; older ones count as published. Too late a time loses events.',
      value: '<time>',
    }),
    lockTimeoutMs: integerFlag({
      byDefault: '5000',
      environment: ['MILLRACE_LOCK_TIMEOUT_MS'],
      max: 86_400_000,
      min: 1,
      summary: 'How long to wait for each lock that a relay holds.',
      value: '<ms>',
    }),
    outboxSchema: outboxSchemaFlag,
    yes: switchFlag({ environment: ['MILLRACE_YES'], summary: 'Do not ask.' }),
  },
  async run({ dryRun = false, from, lockTimeoutMs, yes = false, ...flags }, io) {
    return withOutbox(flags, async (pool, schemas) => {
      const options = {
        ...(from === undefined ? {} : { from: new Date(from) }),
        ...(lockTimeoutMs === undefined ? {} : { lockTimeoutMs }),
        schemas,
      }
      if (dryRun || !yes) {
        const plan = await reAnchor(pool, { ...options, dryRun: true })
        if (dryRun) io.out(plan.sql)
        // Beside the SQL of a dry run, the summary must not end up in the file it is piped to.
        io.err(`millrace checkpoint re-anchor: ${summary(plan)}\n`)
        if (dryRun) return EXIT.ok
        if (!(await agreed(io))) return EXIT.failure
      }
      const report = await reAnchor(pool, options)
      io.out(`millrace checkpoint re-anchor: done: ${summary(report)}; start the relay\n`)
      return EXIT.ok
    })
  },
})

interface SchemaFlagValues {
  readonly databaseUrl: string | undefined
  readonly outboxSchema: string | undefined
}

async function withOutbox(
  { databaseUrl, outboxSchema }: SchemaFlagValues,
  work: (pool: PgPool, schemas: Partial<SchemaNames>) => Promise<number>,
): Promise<number> {
  const pool = await createPostgresPool({
    applicationName: 'millrace-checkpoint',
    databaseUrl,
    max: 1,
    onError: () => undefined, // the next statement fails with the reason
  })
  try {
    await requireDatabase(pool)
    const schemas = outboxSchema === undefined ? {} : { outbox: outboxSchema }
    await requireSchema(pool, resolveSchemas(schemas))
    return await work(pool, schemas)
  } finally {
    await pool.end()
  }
}

async function agreed(io: CommandIo): Promise<boolean> {
  if (io.ask === undefined) {
    io.err('Nothing was changed: there is no terminal to ask at. Give --yes to go on, or --dry-run to see the SQL.\n')
    return false
  }
  if (/^y(es)?$/i.test((await io.ask('Publish them again? [y/N] ')).trim())) return true
  io.err('Nothing was changed.\n')
  return false
}

function summary({ again, done, newest, oldest, records, rewritten }: ReAnchorReport): string {
  const span = oldest === null ? '' : `, from ${oldest.toISOString()} to ${(newest ?? oldest).toISOString()}`
  const verb = done ? 'are' : 'would be'
  return `${again} of ${records} records ${verb} published again${span}; ${rewritten} of them ${verb} written anew`
}

function describe({ groups, schema, sequence, sound }: CheckpointReport): string {
  const lines = groups.flatMap((group) => ['', ...describeGroup(group)])
  const behind = BigInt(sequence.largest) > BigInt(sequence.last)
  lines.push(
    '',
    `sequence: ${sequence.last}; largest seq in the outbox: ${sequence.largest}${behind ? ' (above it!)' : ''}`,
  )
  if (!sound) lines.push('', `A relay refuses to start. Run: millrace checkpoint re-anchor${schemaFlag(schema)}`)
  return `${lines.slice(1).join('\n')}\n`
}

function describeGroup(group: CheckpointGroup): string[] {
  const rows: [string, string | null][] = [
    ['certified', group.certified ? 'yes' : `no: ${group.reason}`],
    ['base', group.base ?? 'none: no checkpoint yet, everything is to be published'],
    ['floor', group.baseFloor],
    ['delta', group.target === null ? null : `to ${group.target}, published up to seq ${group.after}`],
    ['wal', group.wal],
    ['written', group.writtenAt === null ? null : `${group.writtenAt.toISOString()} by transaction ${group.writer}`],
    ['epoch', group.epoch],
    ['owner', group.owner ?? 'nobody'],
  ]
  const shown = rows.filter(([, value]) => value !== null)
  return [`shards ${ranges(group.shards)}`, ...shown.map(([name, value]) => `  ${name.padEnd(9)} ${value}`)]
}

/** `0-3, 7`. */
function ranges(shards: readonly number[]): string {
  const runs: [number, number][] = []
  for (const shard of shards) {
    const last = runs.at(-1)
    if (last !== undefined && last[1] === shard - 1) last[1] = shard
    else runs.push([shard, shard])
  }
  return runs.map(([from, to]) => (from === to ? `${from}` : `${from}-${to}`)).join(', ')
}
