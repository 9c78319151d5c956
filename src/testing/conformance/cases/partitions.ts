/** Keys and partitions. */
import assert from 'node:assert/strict'
import type { ConformanceCase } from '../conformance-case.ts'
import { keyedMessages, sampleKeys, sampleMessage } from '../sample-message.ts'
import { onStage } from '../stage.ts'

/** The partition Kafka's Java client chooses for a key, out of 7 and out of 12. */
const JAVA_PARTITIONS: readonly (readonly [key: string, of7: number, of12: number])[] = [
  ['21', 3, 0],
  ['foobar', 0, 6],
  ['a-little-bit-long-string', 1, 8],
  ['a-little-bit-longer-string', 0, 11],
  ['lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8', 3, 5],
  ['abc', 4, 3],
  ['a', 5, 4],
  ['ab', 0, 2],
  ['naïve-鍵', 5, 3],
  ['order-42', 1, 0],
  ['018f4e2a-7c1b-7000-8000-0123456789ab', 1, 4],
  ['k'.repeat(1000), 1, 8],
]

export const partitionCases: readonly ConformanceCase[] = [
  onStage('a key always lands on the same partition, whoever publishes it and when', async (stage) => {
    const topic = await stage.topic(5)
    const keys = sampleKeys(40)
    const first = await stage.publisher()
    const second = await stage.publisher()
    for (let round = 0; round < 3; round++) {
      await stage.publish(first, keyedMessages(topic, keys, 40))
      await stage.publish(second, keyedMessages(topic, [...keys].reverse(), 40))
    }
    const reader = await stage.reader({ group: stage.context.group(), topics: [topic] })
    await reader.count(240)
    for (const [key, messages] of Map.groupBy(reader.received, (message) => message.key)) {
      assert.equal(new Set(messages.map((message) => message.partition)).size, 1, `partitions of ${key}`)
    }
    const used = new Set(reader.received.map((message) => message.partition)).size
    assert.equal(used, (await stage.main()).capabilities.partitions ? 5 : 1, 'partitions in use')
  }),

  onStage(
    "a key lands on the partition that Kafka's Java client chooses",
    async (stage) => {
      const publisher = await stage.publisher()
      for (const partitions of [7, 12] as const) {
        const topic = await stage.topic(partitions)
        await stage.publish(
          publisher,
          JAVA_PARTITIONS.map(([key]) => sampleMessage(topic, { key })),
        )
        const reader = await stage.reader({ group: stage.context.group(), topics: [topic] })
        await reader.count(JAVA_PARTITIONS.length)
        assert.deepEqual(
          Object.fromEntries(reader.received.map((message) => [message.key, message.partition])),
          Object.fromEntries(JAVA_PARTITIONS.map(([key, of7, of12]) => [key, partitions === 7 ? of7 : of12])),
        )
      }
    },
    (capabilities) => capabilities.partitions,
  ),
]
