/** Groups of shards that one relay reads, from different checkpoints, and how they become one. */
import { afterEach, beforeEach, expect, test } from 'vitest'
import { systemClock } from '../../src/core/clock.ts'
import { Signals } from '../../src/core/signals.ts'
import { PollingCapture } from '../../src/outbox-relay/capture/polling/polling-capture.ts'
import { Snapshot } from '../../src/outbox-relay/capture/polling/snapshot.ts'
import { ALL_SHARDS } from '../../src/outbox-relay/shards.ts'
import { appendSql, read } from '../support/outbox-writer.ts'
import { type TestDatabase, createTestDatabase, describeWith } from '../support/services.ts'

for (const version of [18, 15] as const) {
  describeWith(`postgres${version}`, `groups of shards on PostgreSQL ${version}`, () => {
    let database: TestDatabase

    beforeEach(async () => void (database = await createTestDatabase({ version })))
    afterEach(() => database.close())

    test('under a load that never pauses they meet at one snapshot, and each record is read once', async () => {
      const reader = await database.pool.connect()
      const start = [ALL_SHARDS.slice(0, 5), ALL_SHARDS.slice(5, 9), ALL_SHARDS.slice(9)].map((shards) => ({
        checkpoint: { base: { snapshot: Snapshot.NOTHING, floor: 0n } },
        shards,
      }))
      const capture = new PollingCapture({
        bounds: { maxBytes: 1024 * 1024, maxMessages: 4 },
        clock: systemClock,
        log: { write: async () => void (await database.pool.query('select pg_current_xact_id()')) },
        pollIntervalMs: 5,
        reader,
        schema: 'outbox',
        signals: new Signals(),
        start,
      })
      let appended = 0
      const append = async (count: number): Promise<void> => {
        for (let i = 0; i < count; i++) await appendSql(database.pool, `key ${appended}`, appended++)
      }
      await append(30)
      const seen: number[] = []
      let together = 0
      for (let pages = 0; pages < 300 && together < 5; pages++) {
        await append(3)
        const page = await capture.read()
        if (page === undefined) throw new Error('the load paused')
        await capture.open(page)
        seen.push(...page.messages.map(({ payload }) => read(payload).n))
        capture.published(page)
        if ((page.shards ?? []).length === ALL_SHARDS.length) together++
      }
      expect(together).toBe(5)
      expect(new Set(seen).size).toBe(seen.length)
      await capture.close()
      reader.release()
    })
  })
}
