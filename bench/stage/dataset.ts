/**
 * An outbox with committed records in a database of its own, that can be relayed again and again: by polling from its
 * first record, or from a replication slot that was made before the first was written.
 */
import { randomUUID } from 'node:crypto'
import pg from 'pg'
import { createRelay, migrate } from '../../src/index.ts'
import { publicationName } from '../../src/outbox-relay/capture/replication/publication.ts'
import { slotName } from '../../src/outbox-relay/capture/replication/slot-name.ts'
import { nullBroker } from './brokers.ts'

/** What a dataset holds: records of 1000 bytes of payload and a trace. */
export interface DatasetPlan {
  readonly keys: number
  readonly perTransaction: number
  readonly records: number
}

const CHECKPOINT =
  'shards, epoch, base, base_floor, target, target_floor, high, after, wal, wal_tx, wal_rows, publication'

/** A dataset. Made by {@link makeDataset}. */
export interface Dataset extends DatasetPlan {
  readonly databaseUrl: string
  /** The end of its records in the WAL. */
  readonly endLsn: string
  readonly pool: pg.Pool
  readonly publication: string
  readonly slot: string
  readonly topic: string
  /** WAL written for each event, with its index entries, its share of the commit and full-page images. */
  readonly walBytesPerEvent: number
  /** Puts everything back to before the first record. */
  rewind(capture: 'polling' | 'replication'): Promise<void>
  /** A slot of this name that stands before the first record. */
  copySlot(name: string): Promise<void>
  dropSlot(name: string): Promise<void>
  /** Writes more records, for polling alone: the slots go, and with them the WAL that they keep. */
  extend(records: number): Promise<void>
  drop(): Promise<void>
}

/** Makes the database, a relay's place in it, and the records. */
export async function makeDataset(serverUrl: string, plan: DatasetPlan): Promise<Dataset> {
  const name = `bench_${randomUUID().slice(0, 8)}`
  const admin = new pg.Client({ connectionString: serverUrl })
  await admin.connect()
  await admin.query(`create database ${name}`)
  const databaseUrl = Object.assign(new URL(serverUrl), { pathname: `/${name}` }).href
  const pool = new pg.Pool({ connectionString: databaseUrl, max: 4 })
  pool.on('error', () => {})
  const slot = slotName(name, 'outbox')
  const origin = `${name}_origin`
  const topic = `t-${randomUUID().slice(0, 8)}`
  await migrate(pool)
  await takePlace(pool)
  await released(pool, slot)
  await pool.query('select pg_copy_logical_replication_slot($1, $2)', [slot, origin])
  await pool.query(`create table bench_place as select ${CHECKPOINT} from outbox.checkpoint order by n desc limit 1`)
  await pool.query(FILL)
  await pool.query('checkpoint')
  const before = await lsn(pool)
  await fill(pool, topic, plan)
  const endLsn = await lsn(pool)
  await settle(pool)
  const bytes = await pool.query<{ n: string }>('select pg_wal_lsn_diff($1, $2) as n', [endLsn, before])

  const dropSlots = async (names: readonly string[]): Promise<void> => {
    for (const one of names) {
      await released(pool, one)
      await pool.query(
        'select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = $1 and not active',
        [one],
      )
    }
  }
  const copySlot = async (copy: string): Promise<void> => {
    await dropSlots([copy])
    await pool.query('select pg_copy_logical_replication_slot($1, $2)', [origin, copy])
  }
  return {
    ...plan,
    databaseUrl,
    endLsn,
    pool,
    publication: publicationName('outbox'),
    slot,
    topic,
    walBytesPerEvent: Number(bytes.rows[0]?.n) / plan.records,
    copySlot,
    dropSlot: (one) => dropSlots([one]),
    async rewind(capture) {
      await pool.query('truncate outbox.checkpoint, outbox.crash_start, outbox.crash_suspect')
      if (capture === 'polling') return
      await copySlot(slot)
      // A new row certifies itself by the transaction that wrote it.
      await pool.query(`insert into outbox.checkpoint (bucket, ${CHECKPOINT}) select 0, ${CHECKPOINT} from bench_place`)
    },
    async extend(records) {
      await dropSlots([slot, origin])
      await fill(pool, topic, { ...plan, records })
      await settle(pool)
    },
    async drop() {
      await dropSlots([slot, origin])
      await pool.end()
      await admin.query(`drop database ${name} with (force)`)
      await admin.end()
    },
  }
}

/** A relay streams for a moment: it makes publication and slot, and writes its place. */
async function takePlace(pool: pg.Pool): Promise<void> {
  const relay = createRelay({ broker: nullBroker(), capture: 'replication', postgres: pool })
  await relay.start()
  while (relay.stats().capture !== 'replication') await pause(5)
  await relay.stop()
}

async function released(pool: pg.Pool, slot: string): Promise<void> {
  const text = 'select from pg_replication_slots where slot_name = $1 and active'
  while ((await pool.query(text, [slot])).rowCount !== 0) await pause(20)
}

async function lsn(pool: pg.Pool): Promise<string> {
  const { rows } = await pool.query<{ lsn: string }>('select pg_current_wal_insert_lsn()::text as lsn')
  return rows[0]?.lsn as string
}

const FILL = `
  create procedure bench_fill(topic text, records integer, per_transaction integer, keys integer) language plpgsql as $$
  begin
    for i in 1 .. records / per_transaction loop
      insert into outbox.record (shard, id, topic, key, type, payload, headers)
      select outbox.shard_of('customer-' || n % keys), outbox.new_id(), bench_fill.topic, 'customer-' || n % keys,
             'order.placed', decode(repeat('5a', 1000), 'hex'),
             '{"traceparent":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}'
      from generate_series((i - 1) * per_transaction, i * per_transaction - 1) n;
      commit;
    end loop;
  end $$`

async function fill(pool: pg.Pool, topic: string, plan: DatasetPlan): Promise<void> {
  const client = await pool.connect()
  try {
    // Nothing of the measurement: one flush at the end is enough.
    await client.query('set synchronous_commit = off')
    const { keys, perTransaction, records } = plan
    await client.query(`call bench_fill('${topic}', ${records}, ${perTransaction}, ${keys})`)
    await client.query('set synchronous_commit = on')
    await client.query('create table if not exists bench_flush (); drop table bench_flush')
  } finally {
    client.release()
  }
}

/** As a database that is looked after: otherwise the first reader pays for the hint bits of all. */
async function settle(pool: pg.Pool): Promise<void> {
  await pool.query('vacuum (analyze) outbox.record')
  await pool.query('checkpoint')
}

function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms))
}
