import type { Partition } from '../../broker.ts'
import type { Module } from './apis.ts'
import type { Candidate } from './assignor.ts'

/** Members keep what does not move, and are asked to give up what does. The same name as in Kafka's Java client. */
export const COOPERATIVE = 'cooperative-sticky'

/** What kafkajs offers, so that members of both can be in one group while a service changes from one to the other. */
export const EAGER = 'RoundRobinAssigner'

interface TopicPartitions {
  readonly partitions: number[]
  readonly topic: string
}

/** What a member says of itself in `JoinGroup`, for both protocols. */
export function encodeSubscription(
  module: Module,
  topics: readonly string[],
  owned: readonly Partition[],
  generation: number,
): { metadata: Buffer; name: string }[] {
  const common = { ownedPartitions: byTopic(owned), rackId: null, topics: [...topics] }
  const generationId = owned.length > 0 ? generation : -1
  const encode = (version: number): Buffer =>
    module.encodeConsumerProtocolSubscription({ ...common, generationId, userData: Buffer.alloc(0), version })
  return [
    { metadata: encode(3), name: COOPERATIVE },
    { metadata: encode(1), name: EAGER },
  ]
}

/** What a member said of itself. */
export function decodeSubscription(module: Module, id: string, metadata: Buffer): Candidate {
  const { generationId, ownedPartitions, topics } = module.decodeConsumerProtocolSubscription(metadata)
  return { generation: generationId, id, owned: flat(ownedPartitions), topics: new Set(topics) }
}

/** What a member gets in `SyncGroup`. */
export function encodeAssignment(module: Module, partitions: readonly Partition[]): Buffer {
  return module.encodeConsumerProtocolAssignment({
    assignedPartitions: byTopic(partitions),
    userData: Buffer.alloc(0),
    version: 1,
  })
}

/** What a member got. */
export function decodeAssignment(module: Module, assignment: Buffer): Partition[] {
  return flat(module.decodeConsumerProtocolAssignment(assignment).assignedPartitions)
}

function byTopic(partitions: readonly Partition[]): TopicPartitions[] {
  const topics = Map.groupBy(partitions, (one) => one.topic)
  return Array.from(topics, ([topic, own]) => ({ partitions: own.map((one) => one.partition), topic }))
}

function flat(topics: readonly TopicPartitions[]): Partition[] {
  return topics.flatMap(({ partitions, topic }) => partitions.map((partition) => ({ partition, topic })))
}
