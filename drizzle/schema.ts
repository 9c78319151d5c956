/**
 * `millrace/drizzle`: the tables of both schemas for drizzle's query builder, to read the outbox or the inbox in an
 * application or a test, and `fromDrizzle`.
 *
 * `millrace migrate` makes the tables; keep drizzle-kit away from them (`schemaFilter`). Drizzle cannot express that
 * `record`, `checkpoint` and `message` are partitioned, so it would make them wrong. A test holds everything else
 * equal to the migrated catalog.
 */
import { sql } from 'drizzle-orm'
import {
  bigint,
  boolean,
  check,
  customType,
  index,
  integer,
  jsonb,
  pgSchema,
  pgTable,
  primaryKey,
  smallint,
  text,
  timestamp,
  unique,
  uuid,
} from 'drizzle-orm/pg-core'
import { resolveSchemas } from '../src/postgres/schemas.ts'
import type { SchemaNames } from '../src/postgres/sql.ts'

export { fromDrizzle } from '../src/postgres/transactions/drizzle.ts'
export type { DrizzleTransaction } from '../src/postgres/transactions/drizzle.ts'

const bytea = customType<{ data: Buffer }>({ dataType: () => 'bytea' })
/** A transaction id, decimal digits. */
const xid8 = customType<{ data: string }>({ dataType: () => 'xid8' })
/** A place in the WAL in its text form, `X/Y`. */
const pgLsn = customType<{ data: string }>({ dataType: () => 'pg_lsn' })
/** A snapshot in its text form, `xmin:xmax:xip,…`. */
const pgSnapshot = customType<{ data: string }>({ dataType: () => 'pg_snapshot' })

const identity = (name: string) => bigint(name, { mode: 'bigint' }).notNull().generatedAlwaysAsIdentity()
const time = (name: string) => timestamp(name, { withTimezone: true })

// drizzle's pgSchema refuses the name of the schema that needs none.
const tableIn = (schema: string): typeof pgTable =>
  schema === 'public' ? pgTable : (pgSchema(schema).table as unknown as typeof pgTable)

/**
 * The tables in schemas of other names.
 *
 * @example
 * const { outbox } = millraceTables({ outbox: 'shop_outbox' })
 * const newest = await db.select().from(outbox.record).orderBy(desc(outbox.record.seq)).limit(10)
 */
export function millraceTables(schemas?: Partial<SchemaNames>) {
  const names = resolveSchemas(schemas)
  return { inbox: inboxTables(names.inbox), outbox: outboxTables(names.outbox) }
}

function outboxTables(schema: string) {
  const table = tableIn(schema)
  return {
    /** How far the shards are published. Partitioned by bucket. */
    checkpoint: table(
      'checkpoint',
      {
        bucket: smallint('bucket').notNull(),
        n: identity('n'),
        shards: smallint('shards').array().notNull(),
        epoch: bigint('epoch', { mode: 'bigint' }).notNull(),
        base: pgSnapshot('base').notNull(),
        baseFloor: bigint('base_floor', { mode: 'bigint' }).notNull(),
        target: pgSnapshot('target'),
        targetFloor: bigint('target_floor', { mode: 'bigint' }),
        high: bigint('high', { mode: 'bigint' }),
        after: bigint('after', { mode: 'bigint' }),
        wal: pgLsn('wal'),
        walTx: pgLsn('wal_tx'),
        walRows: bigint('wal_rows', { mode: 'bigint' }),
        publication: text('publication'),
        writer: xid8('writer')
          .notNull()
          .default(sql`pg_current_xact_id()`),
        system: bigint('system', { mode: 'bigint' })
          .notNull()
          .default(sql`(pg_control_system()).system_identifier`),
        writtenAt: time('written_at')
          .notNull()
          .default(sql`clock_timestamp()`),
      },
      (t) => [index('checkpoint_n').on(t.n)],
    ),
    /** How often a process began to relay a shard at one position without progress. */
    crashStart: table('crash_start', {
      shard: smallint('shard').primaryKey(),
      position: text('position').notNull(),
      starts: integer('starts').notNull(),
    }),
    /** Events in whose publishing a relay died. */
    crashSuspect: table('crash_suspect', {
      id: uuid('id').primaryKey(),
      shard: smallint('shard').notNull(),
      calls: integer('calls').notNull().default(1),
    }),
    /** Who owns each shard. */
    lease: table('lease', {
      shard: smallint('shard').primaryKey(),
      epoch: bigint('epoch', { mode: 'bigint' })
        .notNull()
        .default(sql`0`),
      token: uuid('token'),
      holder: text('holder'),
      backendPid: integer('backend_pid'),
      backendStart: time('backend_start'),
      expiresAt: time('expires_at')
        .notNull()
        .default(sql`'-infinity'`),
    }),
    /** The living relays. */
    member: table('member', {
      token: uuid('token').primaryKey(),
      holder: text('holder').notNull(),
      sharing: boolean('sharing').notNull(),
      backendPid: integer('backend_pid').notNull(),
      backendStart: time('backend_start'),
      expiresAt: time('expires_at').notNull(),
    }),
    /** Which migrations the database has. */
    migration: table('migration', {
      version: integer('version').primaryKey(),
      name: text('name').notNull(),
      checksum: text('checksum').notNull(),
      appliedAt: time('applied_at')
        .notNull()
        .default(sql`clock_timestamp()`),
    }),
    /** What was discarded of the parked events: who, when and why. */
    parkedDiscard: table(
      'parked_discard',
      {
        n: identity('n').primaryKey(),
        shard: smallint('shard').notNull(),
        seq: bigint('seq', { mode: 'bigint' }).notNull(),
        id: uuid('id').notNull(),
        topic: text('topic').notNull(),
        key: text('key'),
        type: text('type').notNull(),
        bytes: integer('bytes').notNull(),
        parkedAt: time('parked_at').notNull(),
        discardedAt: time('discarded_at').notNull().defaultNow(),
        discardedBy: text('discarded_by').notNull(),
        reason: text('reason').notNull(),
      },
      (t) => [index('parked_discard_parked_at').on(t.parkedAt)],
    ),
    /** The keys that are parked; an event without a key is parked alone. */
    parkedKey: table(
      'parked_key',
      {
        lane: uuid('lane').primaryKey(),
        shard: smallint('shard').notNull(),
        key: text('key'),
        id: uuid('id').notNull(),
        topic: text('topic').notNull(),
        reason: text('reason', { enum: ['poison', 'crash', 'behind'] }).notNull(),
        error: text('error').notNull(),
        attempts: integer('attempts').notNull().default(1),
        parkedAt: time('parked_at').notNull().defaultNow(),
        replay: boolean('replay').notNull().default(false),
        askedAt: time('asked_at'),
      },
      (t) => [
        check('parked_key_reason_check', sql`reason in ('poison', 'crash', 'behind')`),
        index('parked_key_shard').on(t.shard),
        index('parked_key_asked').on(t.askedAt, t.shard),
      ],
    ),
    /** The parked events, in the order they shall go out. */
    parkedRecord: table(
      'parked_record',
      {
        n: identity('n').primaryKey(),
        lane: uuid('lane').notNull(),
        shard: smallint('shard').notNull(),
        seq: bigint('seq', { mode: 'bigint' }).notNull(),
        id: uuid('id').notNull(),
        topic: text('topic').notNull(),
        key: text('key'),
        type: text('type').notNull(),
        payload: bytea('payload').notNull(),
        headers: jsonb('headers').$type<Record<string, string>>().notNull(),
        timeMs: bigint('time_ms', { mode: 'bigint' }).notNull(),
        bytes: integer('bytes').notNull(),
        parkedAt: time('parked_at').notNull().defaultNow(),
        discardAt: time('discard_at'),
        discardBy: text('discard_by'),
        discardReason: text('discard_reason'),
      },
      (t) => [
        unique('parked_record_lane_id_key').on(t.lane, t.id),
        index('parked_record_lane_n').on(t.lane, t.n),
        index('parked_record_id').on(t.id),
        index('parked_record_shard').on(t.shard),
        index('parked_record_discard').on(t.discardAt, t.lane),
      ],
    ),
    /** The events. Partitioned by bucket; only ever inserted into, by `append`. */
    record: table(
      'record',
      {
        tx: xid8('tx')
          .notNull()
          .default(sql`pg_current_xact_id()`),
        seq: identity('seq'),
        bucket: smallint('bucket')
          .notNull()
          .default(sql`(date_part('epoch', transaction_timestamp())::bigint / 14400 % 8)::smallint`),
        shard: smallint('shard').notNull(),
        id: uuid('id').notNull(),
        topic: text('topic').notNull(),
        key: text('key'),
        type: text('type').notNull(),
        payload: bytea('payload').notNull(),
        headers: jsonb('headers')
          .$type<Record<string, string>>()
          .notNull()
          .default(sql`'{}'`),
      },
      (t) => [
        check('record_topic_check', sql`topic <> ''`),
        check('record_type_check', sql`type <> ''`),
        index('record_seq_shard').on(t.seq, t.shard),
        index('record_tx_seq').on(t.tx, t.seq),
      ],
    ),
  }
}

function inboxTables(schema: string) {
  const table = tableIn(schema)
  return {
    /** Messages set aside for good. */
    deadLetter: table(
      'dead_letter',
      {
        n: identity('n').primaryKey(),
        consumer: text('consumer').notNull(),
        id: uuid('id').notNull(),
        messageId: text('message_id').notNull(),
        topic: text('topic').notNull(),
        partition: integer('partition').notNull(),
        position: bigint('position', { mode: 'bigint' }).notNull(),
        key: text('key'),
        type: text('type').notNull(),
        payload: bytea('payload'),
        headers: jsonb('headers').$type<Record<string, string>>().notNull(),
        error: text('error').notNull(),
        attempts: integer('attempts').notNull(),
        traceId: text('trace_id'),
        firstFailedAt: time('first_failed_at').notNull(),
        deadAt: time('dead_at').notNull().defaultNow(),
      },
      (t) => [unique('dead_letter_consumer_id_key').on(t.consumer, t.id)],
    ),
    /** Which messages a consumer has handled. Partitioned by bucket. */
    message: table(
      'message',
      {
        bucket: smallint('bucket').notNull(),
        consumer: text('consumer').notNull(),
        id: uuid('id').notNull(),
        state: text('state', { enum: ['done', 'parked', 'dead'] })
          .notNull()
          .default('done'),
        handledAt: time('handled_at').notNull().defaultNow(),
      },
      (t) => [
        check('message_state_check', sql`state in ('done', 'parked', 'dead')`),
        primaryKey({ columns: [t.consumer, t.id, t.bucket], name: 'message_pkey' }),
      ],
    ),
  }
}

const { inbox, outbox } = millraceTables()
export const { checkpoint, lease, member, migration, record } = outbox
export const { deadLetter, message } = inbox
