import type { Partition, SubscriptionOptions } from '../../broker.ts'
import type { Client } from './client.ts'
import { ProtocolRefusal } from './error-class.ts'

/** The two ends of a log, as the protocol asks for them. */
const TIMES = { earliest: -2n, latest: -1n } as const
const READ_COMMITTED = 1

/** Where the logs of these partitions begin or end now, by `<partition> <topic>`. A partition that does not answer is left out. */
export async function listOffsets(
  client: Client,
  partitions: readonly Partition[],
  which: NonNullable<SubscriptionOptions['startFrom']>,
): Promise<Map<string, bigint>> {
  await client.topics(new Set(partitions.map((one) => one.topic)))
  const leaderOf = (one: Partition): number => client.known(one.topic)?.partitions[one.partition]?.leader ?? -1
  const found = new Map<string, bigint>()
  for (const [node, own] of Map.groupBy(partitions, leaderOf)) {
    if (node < 0) continue
    const link = await client.broker(node, 'control')
    const topics = Array.from(
      Map.groupBy(own, (one) => one.topic),
      ([name, ofTopic]) => ({
        name,
        partitions: ofTopic.map((one) => ({
          currentLeaderEpoch: -1,
          partitionIndex: one.partition,
          timestamp: TIMES[which],
        })),
      }),
    )
    const answer = await link.request('listOffsets', -1, READ_COMMITTED, topics)
    for (const { name, partitions: answers } of answer.topics) {
      for (const one of answers) {
        if (one.errorCode === 0) found.set(`${one.partitionIndex} ${name}`, one.offset)
      }
    }
  }
  if (found.size < partitions.length) {
    await client.topics(new Set(partitions.map((one) => one.topic)), true)
    if (found.size === 0) throw new ProtocolRefusal('LEADER_NOT_AVAILABLE')
  }
  return found
}
