/** A database with an outbox, a publication and a slot, and streams of it that are written down. */
import pg from 'pg'
import { onTestFinished } from 'vitest'
import { delay, systemClock } from '../../src/core/clock.ts'
import type { OutgoingMessage } from '../../src/core/message.ts'
import { createSlot, readSlot } from '../../src/outbox-relay/capture/replication/slot.ts'
import { parseWalPosition } from '../../src/outbox-relay/capture/replication/wal-position.ts'
import type { LogicalMessage, WalSink } from '../../src/outbox-relay/capture/replication/wal-sink.ts'
import { WalStream, type WalStreamOptions } from '../../src/outbox-relay/capture/replication/wal-stream.ts'
import { quoteIdentifier } from '../../src/postgres/sql.ts'
import { track } from './leaks.ts'
import { createTestDatabase } from './services.ts'

/** What the stream handed over, and waiting for more of it. */
export class Recorded implements WalSink {
  /** Names of calls in their order: `begin`, `commit`, and the text of each payload. */
  readonly order: string[] = []
  readonly logical: LogicalMessage[] = []
  readonly messages: OutgoingMessage[] = []
  readonly txs: bigint[] = []
  lastEnd = 0n
  walEnd = 0n
  #waiting: (() => void)[] = []

  onBegin(): void {
    this.order.push('begin')
  }
  onCommit(endLsn: bigint): void {
    this.order.push('commit')
    this.lastEnd = endLsn
    this.#wake()
  }
  onKeepalive(walEnd: bigint): void {
    this.walEnd = walEnd
    this.#wake()
  }
  onLogicalMessage(message: LogicalMessage): void {
    this.logical.push(message)
    this.#wake()
  }
  onMessage(message: OutgoingMessage, tx: bigint): void {
    this.messages.push(message)
    this.txs.push(tx)
    this.order.push(message.payload.toString('utf8', 0, 20))
    this.#wake()
  }
  onRelation(): void {}

  /** Resolves when it holds; the test's own deadline bounds it. */
  async until(holds: () => boolean): Promise<void> {
    while (!holds()) await new Promise<void>((resolve) => this.#waiting.push(resolve))
  }

  #wake(): void {
    const waiting = this.#waiting
    this.#waiting = []
    for (const resolve of waiting) resolve()
  }
}

let slots = 0

export interface WalStage {
  readonly pool: pg.Pool
  readonly publication: string
  readonly slot: string
  readonly url: string
  /** One event in a transaction of its own. */
  append(payload: string): Promise<void>
  confirmed(): Promise<string>
  /** A stream that the test closes when it ends, whatever happens; it begins paused. */
  open(sink: WalSink, options?: Partial<WalStreamOptions>): Promise<WalStream>
}

/** Makes a stage that is cleared away when the test ends. */
export async function walStage(version: 15 | 18, publication = 'millrace'): Promise<WalStage> {
  const database = await createTestDatabase({ version })
  onTestFinished(() => database.close())
  const slot = `wal_${process.pid}_${++slots}`
  return stageOn(database.pool, database.url, slot, publication)
}

/** The same on any migrated database. */
export async function stageOn(
  pool: pg.Pool,
  url: string,
  slot: string,
  publication = 'millrace',
  schema = 'outbox',
): Promise<WalStage> {
  const table = `${quoteIdentifier(schema)}.record`
  await pool.query(
    `create publication ${quoteIdentifier(publication)} for table ${table}
     with (publish = 'insert', publish_via_partition_root = true)`,
  )
  await createSlot({ clock: systemClock, pool, slot })
  return {
    pool,
    publication,
    slot,
    url,
    async append(payload) {
      await pool.query(`select ${quoteIdentifier(schema)}.append('orders', 'k', 'order.changed', $1)`, [
        Buffer.from(payload),
      ])
    },
    async confirmed() {
      const text = 'select confirmed_flush_lsn::text as lsn from pg_replication_slots where slot_name = $1'
      const { rows } = await pool.query<{ lsn: string }>(text, [slot])
      return rows[0]?.lsn as string
    },
    async open(sink, options = {}) {
      const stream = await WalStream.open({ clock: systemClock, pool, publication, schema, sink, slot, ...options })
      onTestFinished(() => stream.close())
      const release = track(`stream of ${slot}`, () => stream.close())
      void stream.ended.then(release)
      return stream
    },
  }
}

/** Waits until the slot is confirmed as far. */
export async function slotAt(stage: WalStage, reached: (lsn: bigint) => boolean): Promise<void> {
  await poll(async () => reached(parseWalPosition(await stage.confirmed())))
}

/** Waits until nobody holds the slot. A stream that is closed waits half a second for a slow server to let go, no longer. */
export async function slotFree(pool: pg.Pool, slot: string): Promise<void> {
  await poll(async () => (await readSlot(pool, slot))?.activePid === undefined)
}

/** Asks until it holds; the test's own deadline bounds it. */
export async function poll(holds: () => Promise<boolean>): Promise<void> {
  while (!(await holds())) await delay(systemClock, 20)
}
