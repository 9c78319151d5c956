/**
 * The daemon from the outside: `millrace relay` as a process, plain SQL before it, plain clients of the brokers behind
 * it. It is killed at random moments, and stood still past its lease.
 *
 * Every run has new seeds; a failure prints its own, and MILLRACE_KILL_SEED=<seed> makes the same choices again.
 */
import { randomInt } from 'node:crypto'
import { expect, onTestFinished, test } from 'vitest'
import { CliProcess } from '../integration/cli-process.ts'
import { createTestDatabase, describeWith } from '../support/services.ts'
import { seeded } from '../unit/flow-random.ts'
import { type TopicReader, kafkaReader, natsReader } from './kill-readers.ts'
import { expectTails, judge, missing, wentBack } from './kill-verdict.ts'
import { SqlWriters } from './kill-writers.ts'
import { passes, published } from './model-random.ts'

const EVENTS = 25_000
const KILLS = 10
const PAGE_SIZE = 50
const TAKEOVERS = 4

const brokers = [
  { name: 'kafka', reader: kafkaReader },
  { name: 'nats', reader: natsReader },
] as const

const seed = Number(process.env['MILLRACE_KILL_SEED'] ?? randomInt(2 ** 31))

/** Starts a daemon as an operator does. */
function daemon(database: string, broker: string, ...more: string[]): CliProcess {
  const flags = ['--database-url', database, '--broker', broker, '--capture', 'polling']
  return new CliProcess(['relay', ...flags, '--page-size', String(PAGE_SIZE), ...more])
}

/** A database with writers, a topic with a reader, until the test ends. */
async function stage(reader: (topic: string) => Promise<TopicReader>) {
  const database = await createTestDatabase()
  const topic = await reader(database.name)
  const random = seeded(seed)
  const writers = new SqlWriters(database.url, database.name, random)
  await writers.start()
  onTestFinished(async () => {
    await writers.close()
    await topic.close()
    await database.close()
  })
  return { database, random, topic, writers }
}

/** Resolves when the daemon says, in a line from `after` on, that it relays so many shards. */
async function holds(relay: CliProcess, shards: number, after = 0): Promise<void> {
  const says = (): boolean =>
    relay.log
      .slice(after)
      .some((line) => line['state'] === 'relaying' && (line['shards'] as readonly number[]).length === shards)
  await expect.poll(says, { timeout: 60_000 }).toBe(true)
}

for (const { name, reader } of brokers) {
  describeWith(['postgres18', name], `millrace relay to ${name}, seed ${seed}`, () => {
    test(`killed ${KILLS} times in ${EVENTS} events: none lost, none uncommitted, repeats only as tails of a key`, async () => {
      const { database, random, topic, writers } = await stage(reader)
      const stored = (): number => [...topic.found.values()].reduce((sum, { length }) => sum + length, 0)
      for (let kill = 0; kill < KILLS; kill++) {
        // What the one before it sent, and the reader has not seen yet, is not its own first page.
        await topic.caughtUp()
        const before = stored()
        const relay = daemon(database.url, topic.brokerUrl)
        writers.allow(EVENTS / (KILLS + 1))
        await relay.logged({ state: 'relaying' })
        // Killed before its first page again and again, the relays would publish one by one; see the crash counter.
        await expect.poll(stored, { interval: 5, timeout: 60_000 }).toBeGreaterThan(before)
        await passes(random.below(200))
        await relay.kill()
      }
      const last = daemon(database.url, topic.brokerUrl)
      writers.allow(EVENTS - (KILLS * EVENTS) / (KILLS + 1))
      await published(topic.until(await writers.finish()))
      last.signal('SIGTERM')
      expect(await last.ended).toMatchObject({ code: 0, err: '' })
      await topic.caughtUp()
      const { events, repeats, restarts } = await judge(database.pool, topic.found)
      expect(events).toBeGreaterThanOrEqual(EVENTS)
      expectTails(topic.found)
      expect(restarts).toBeLessThanOrEqual(KILLS)
      expect(repeats).toBeLessThanOrEqual(KILLS * PAGE_SIZE)
    }, 240_000)

    test('stood still past its lease it is replaced, and awake again it writes no checkpoint and inverts no key', async () => {
      const { database, random, topic, writers } = await stage(reader)
      let still = daemon(database.url, topic.brokerUrl, '--lease-ttl-ms', '1000')
      await holds(still, 16)
      let other = daemon(database.url, topic.brokerUrl, '--lease-ttl-ms', '1000')
      await holds(other, 8)
      await holds(still, 8)
      for (let takeover = 1; takeover <= TAKEOVERS; takeover++) {
        const [stillSaid, otherSaid] = [still.log.length, other.log.length]
        writers.allow(1500)
        await passes(random.below(150))
        still.signal('SIGSTOP')
        await holds(other, 16, otherSaid)
        still.signal('SIGCONT')
        await holds(still, 8, stillSaid)
        ;[still, other] = [other, still]
      }
      await writers.finish()
      await expect.poll(() => missing(database.pool, topic.found), { timeout: 60_000 }).toBe(0)
      for (const relay of [other, still]) {
        relay.signal('SIGTERM')
        expect(await relay.ended).toMatchObject({ code: 0, err: '' })
      }
      await topic.caughtUp()
      const { events } = await judge(database.pool, topic.found)
      expect(events).toBeGreaterThanOrEqual(TAKEOVERS * 1500)
      expect(await wentBack(database.pool)).toEqual([])
    }, 240_000)
  })
}
