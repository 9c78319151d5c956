/** Members of a group: what is committed, what is delivered again, who owns what. */
import assert from 'node:assert/strict'
import type { Partition } from '../../../brokers/broker.ts'
import { delay, systemClock } from '../../../core/clock.ts'
import type { ConformanceCase } from '../conformance-case.ts'
import { untilAny } from '../recording-reader.ts'
import type { RecordingReader } from '../recording-reader.ts'
import { keyedMessages, sampleKeys, sampleMessage } from '../sample-message.ts'
import { onStage } from '../stage.ts'
import { assertComplete } from './delivery.ts'

const KEYS = sampleKeys(30)

function texts(from: number, to: number): string[] {
  return Array.from({ length: to - from }, (_, i) => String(from + i))
}

/** Together they own every partition, and nobody owns none. */
function shared(readers: readonly RecordingReader[], partitions: number): boolean {
  const owned = readers.flatMap((reader) => [...reader.owned.keys()])
  return owned.length === partitions && new Set(owned).size === partitions && readers.every((r) => r.owned.size > 0)
}

/** Resolves when the members share the partitions. */
function untilShared(readers: readonly RecordingReader[], partitions: number): Promise<void> {
  const what = `${readers.length} members to share ${partitions} partitions`
  return untilAny(readers, what, () => shared(readers, partitions))
}

export const groupCases: readonly ConformanceCase[] = [
  onStage('the next member of a group continues after what was committed', async (stage) => {
    const [topic, group] = [await stage.topic(), stage.context.group()]
    const publisher = await stage.publisher()
    await stage.publish(publisher, keyedMessages(topic, ['k'], 20))
    const first = await stage.reader({ group, topics: [topic], autoCommit: false })
    await first.count(20)
    const tenth = first.received[9]
    assert.ok(tenth)
    await first.commit([{ topic, partition: tenth.partition, position: tenth.position }])
    await first.stop()
    const second = await stage.reader({ group, topics: [topic], autoCommit: false })
    await second.count(10)
    await stage.publish(publisher, keyedMessages(topic, ['k'], 1, 20))
    await second.count(11)
    assert.deepEqual(second.textsOf('k'), texts(10, 21))
  }),

  onStage('what was not committed is delivered again, in order', async (stage) => {
    const [topic, group] = [await stage.topic(), stage.context.group()]
    const publisher = await stage.publisher()
    await stage.publish(publisher, keyedMessages(topic, ['k'], 20))
    const first = await stage.reader({ group, topics: [topic], autoCommit: false })
    await first.count(20)
    await first.stop()
    const second = await stage.reader({ group, topics: [topic], autoCommit: false })
    await second.count(20)
    assert.deepEqual(second.textsOf('k'), texts(0, 20))
    assert.deepEqual(
      second.received.map((message) => message.id),
      first.received.map((message) => message.id),
    )
  }),

  onStage('a later commit covers the earlier, and an earlier one that comes late takes nothing back', async (stage) => {
    const [topic, group] = [await stage.topic(), stage.context.group()]
    const publisher = await stage.publisher()
    await stage.publish(publisher, keyedMessages(topic, ['k'], 10))
    const first = await stage.reader({ group, topics: [topic], autoCommit: false })
    await first.count(10)
    const [third, last] = [first.received[2], first.received[9]]
    assert.ok(third && last)
    await first.commit([{ topic, partition: last.partition, position: last.position }])
    await first.commit([{ topic, partition: third.partition, position: third.position }])
    await first.stop()
    await stage.publish(publisher, keyedMessages(topic, ['k'], 1, 10))
    const second = await stage.reader({ group, topics: [topic], autoCommit: false })
    await second.count(1)
    assert.deepEqual(second.textsOf('k'), ['10'])
  }),

  onStage('stop leaves the group, `stopped` resolves, and another member takes over', async (stage) => {
    const [topic, group] = [await stage.topic(4), stage.context.group()]
    const partitions = (await stage.main()).capabilities.partitions
    const publisher = await stage.publisher()
    const first = await stage.reader({ group, topics: [topic] })
    await stage.publish(publisher, keyedMessages(topic, KEYS, 60))
    await first.count(60)
    const second = await stage.reader({ group, topics: [topic] })
    if (partitions) await untilShared([first, second], 4)
    await first.stop()
    await stage.within(first.subscription.stopped, '`stopped` of the member that left')
    await stage.within(first.subscription.stop(), 'the second stop')
    await stage.publish(publisher, keyedMessages(topic, KEYS, 60, 2))
    await second.until('all of the second round', () =>
      KEYS.every((key) => second.textsOf(key).includes('2') && second.textsOf(key).includes('3')),
    )
    if (partitions) assert.equal(second.owned.size, 4, 'the member that stayed owns all')
    assert.equal(first.received.length, 60 + first.received.filter((m) => Number(String(m.payload)) >= 2).length)
  }),

  onStage('commit rejects after stop', async (stage) => {
    const topic = await stage.topic()
    const publisher = await stage.publisher()
    await stage.publish(publisher, [sampleMessage(topic, { key: 'k' })])
    const reader = await stage.reader({ group: stage.context.group(), topics: [topic], autoCommit: false })
    await reader.count(1)
    const only = reader.received[0]
    assert.ok(only)
    await reader.stop()
    await assert.rejects(reader.commit([{ topic, partition: only.partition, position: only.position }]))
  }),

  onStage(
    'a second member shares the partitions, the first is told, and every message is handled by someone',
    async (stage) => {
      const [topic, group] = [await stage.topic(6), stage.context.group()]
      const publisher = await stage.publisher()
      const first = await stage.reader({ group, topics: [topic] })
      await first.until('the first member to own all', () => first.owned.size === 6)
      await stage.publish(publisher, keyedMessages(topic, KEYS, 300))
      const second = await stage.reader({ group, topics: [topic] })
      for (let round = 1; round < 5; round++)
        await stage.publish(publisher, keyedMessages(topic, KEYS, 300, round * 10))
      await untilShared([first, second], 6)
      assert.ok(first.revoked.length + first.lost.length >= second.owned.size, 'the first was told what it lost')
      for (let round = 5; round < 8; round++)
        await stage.publish(publisher, keyedMessages(topic, KEYS, 300, round * 10))
      const handled = (): number => new Set([...first.received, ...second.received].map((message) => message.id)).size
      await untilAny([first, second], '2400 messages by either member', () => handled() === 2400)
      // Each member on its own saw each key in order, if possibly again from the last commit on.
      for (const reader of [first, second]) {
        for (const key of KEYS) {
          const seen = [...new Set(reader.textsOf(key).map(Number))]
          assert.deepEqual(
            seen,
            seen.toSorted((a, b) => a - b),
            `first sightings of ${key} in order`,
          )
        }
      }
    },
    (capabilities) => capabilities.partitions,
  ),

  onStage(
    'commit of a partition that another member owns rejects, and takes nothing away from it',
    async (stage) => {
      const [topic, group] = [await stage.topic(4), stage.context.group()]
      const publisher = await stage.publisher()
      await stage.publish(publisher, keyedMessages(topic, KEYS, 60))
      const first = await stage.reader({ group, topics: [topic], autoCommit: false })
      await first.count(60)
      const positions = Map.groupBy(first.received, (message) => message.partition)
      const second = await stage.reader({ group, topics: [topic], autoCommit: false })
      await untilShared([first, second], 4)
      const [stolen] = [...second.owned.values()]
      assert.ok(stolen)
      const last = positions.get(stolen.partition)?.at(-1)
      assert.ok(last, 'messages on every partition')
      await assert.rejects(first.commit([{ ...stolen, position: last.position }]), 'the commit of a lost partition')
      await second.stop()
      const third = await stage.reader({ group, topics: [topic], autoCommit: false })
      await untilShared([first, third], 4)
      // Whoever owns it now has it again from the start.
      const again = (): number =>
        [...first.received.slice(60), ...third.received].filter((m) => m.partition === stolen.partition).length
      const expected = positions.get(stolen.partition)?.length ?? 0
      await untilAny([first, third], 'the stolen partition from its start', () => again() >= expected)
    },
    (capabilities) => capabilities.partitions,
  ),

  onStage(
    'what is committed while the revoke is awaited is not delivered again',
    async (stage) => {
      const [topic, group] = [await stage.topic(4), stage.context.group()]
      const publisher = await stage.publisher()
      const told: string[] = []
      const first = await stage.reader({
        group,
        topics: [topic],
        autoCommit: false,
        onRevoking: async (partitions, self) => {
          await self.commit(lastPositions(self, partitions))
          // Held for a moment, so that a broker that does not wait is caught.
          await delay(systemClock, 200)
          told.push(...partitions.map((partition) => `${partition.partition} released`))
        },
      })
      await stage.publish(publisher, keyedMessages(topic, KEYS, 300))
      await first.count(300)
      const second = await stage.reader({
        group,
        topics: [topic],
        onAssigned: (partitions) => told.push(...partitions.map((partition) => `${partition.partition} taken`)),
      })
      const readers = [first, second]
      await untilShared(readers, 4)
      for (const { partition } of second.owned.values()) {
        const [released, taken] = [told.indexOf(`${partition} released`), told.indexOf(`${partition} taken`)]
        assert.ok(released >= 0 && released < taken, `partition ${partition} is released before it is taken`)
      }
      await stage.publish(publisher, keyedMessages(topic, KEYS, 300, 10))
      await untilAny(readers, 'the second round', () => first.received.length + second.received.length >= 600)
      assert.ok(
        second.received.every((message) => Number(String(message.payload)) >= 10),
        'nothing of the first round came again',
      )
    },
    (capabilities) => capabilities.partitions && capabilities.awaitedRevoke,
  ),

  onStage('members that come and go lose nothing', async (stage) => {
    const [topic, group] = [await stage.topic(4), stage.context.group()]
    const publisher = await stage.publisher()
    const readers: RecordingReader[] = []
    for (let round = 0; round < 4; round++) {
      readers.push(await stage.reader({ group, topics: [topic] }))
      await stage.publish(publisher, keyedMessages(topic, KEYS, 300, round * 10))
      if (round % 2 === 1) await readers[round - 1]?.stop()
    }
    const seen = (): number => new Set(readers.flatMap((reader) => reader.received.map((m) => m.id))).size
    const staying = readers.filter((_, i) => i % 2 === 1)
    await untilAny(staying, '1200 messages by whichever member', () => seen() === 1200)
  }),

  onStage('a group that is alone and never rebalanced reads each message once', async (stage) => {
    const topic = await stage.topic(4)
    const publisher = await stage.publisher()
    const reader = await stage.reader({ group: stage.context.group(), topics: [topic] })
    for (let round = 0; round < 10; round++) await stage.publish(publisher, keyedMessages(topic, KEYS, 300, round * 10))
    await reader.count(3000)
    await reader.settle()
    await stage.publish(publisher, keyedMessages(topic, KEYS, KEYS.length, 100))
    await reader.count(3000 + KEYS.length)
    assertComplete(reader, KEYS, 101)
  }),
]

function same(a: Partition, b: Partition): boolean {
  return a.topic === b.topic && a.partition === b.partition
}

/** The position of the last message handed over of each of the partitions. */
function lastPositions(
  reader: RecordingReader,
  partitions: readonly Partition[],
): (Partition & { readonly position: bigint })[] {
  return partitions.flatMap((partition) => {
    const last = reader.received.findLast((message) => same(message, partition))
    return last === undefined ? [] : [{ ...partition, position: last.position }]
  })
}
