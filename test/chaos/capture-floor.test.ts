/** The polling capture under random load on real PostgreSQL: what must hold whatever the interleaving. */
import pg from 'pg'
import { beforeEach, afterEach, expect, test } from 'vitest'
import { systemClock } from '../../src/core/clock.ts'
import { Signals } from '../../src/core/signals.ts'
import type { Delta } from '../../src/outbox-relay/capture/polling/delta.ts'
import { PollingCapture } from '../../src/outbox-relay/capture/polling/polling-capture.ts'
import { Snapshot } from '../../src/outbox-relay/capture/polling/snapshot.ts'
import { ALL_SHARDS } from '../../src/outbox-relay/shards.ts'
import type { PgClient, SqlResult } from '../../src/postgres/sql.ts'
import { type TestDatabase, createTestDatabase, describeWith } from '../support/services.ts'

/** How long to look, at least, for a value that the sequence has not reached: it shows about once a second. */
const LOOK_FOR_MS = 7_000
/** And how often. */
const LOOKS = 1000

for (const version of [18, 15] as const) {
  describeWith(`postgres${version}`, `the capture's proof on PostgreSQL ${version}`, () => {
    let database: TestDatabase

    beforeEach(async () => {
      database = await createTestDatabase({ version })
    })
    afterEach(() => database.close())

    test('the floor is a value the sequence has reached, also while nextval writes ahead of itself to the log', async () => {
      const signals = new Signals()
      const reader: PgClient = await database.pool.connect()
      const capture = new PollingCapture({
        bounds: { maxBytes: 1024 * 1024, maxMessages: 1000 },
        clock: systemClock,
        log: { write: async () => {} },
        pollIntervalMs: 25,
        reader: onlyLooks(reader),
        schema: 'outbox',
        signals,
        start: [{ checkpoint: { base: { snapshot: Snapshot.NOTHING, floor: 0n } }, shards: ALL_SHARDS }],
      })
      const wentBack: bigint[] = []
      let highest = 0n
      let looks = 0
      signals.on('capture:look', ({ high }: Delta) => {
        looks++
        if (high < highest) wentBack.push(highest - high)
        highest = high
      })
      const stop = new AbortController()
      const writers = Array.from({ length: 3 }, () => callNextval(database.url, stop.signal))
      const until = systemClock.monotonic() + LOOK_FOR_MS
      while (systemClock.monotonic() < until || looks <= LOOKS) await capture.read()
      stop.abort()
      await Promise.all(writers)
      reader.release()
      expect(looks).toBeGreaterThan(LOOKS)
      expect(wentBack).toEqual([])
    })
  })
}

/** A reader that answers the looks and finds every page empty, so that looks are frequent. */
function onlyLooks(client: PgClient): PgClient {
  const query = (text: string | { handleReadyForQuery(): void }, params?: unknown[]): Promise<SqlResult> => {
    if (typeof text === 'string') return client.query(text, params)
    text.handleReadyForQuery()
    return Promise.resolve({ rows: [] })
  }
  return new Proxy(client, { get: (target, name) => (name === 'query' ? query : Reflect.get(target, name)) })
}

/**
 * Moves the outbox's sequence until the signal aborts. Every 32 values `nextval` writes one WAL record, and while it
 * does, the sequence's page shows the value after those 32 to whoever reads it without its lock.
 */
async function callNextval(url: string, signal: AbortSignal): Promise<void> {
  const client = new pg.Client({ connectionString: url })
  await client.connect()
  while (!signal.aborted)
    await client.query(`select count(nextval('outbox.record_seq_seq')) from generate_series(1, 500)`)
  await client.end()
}
