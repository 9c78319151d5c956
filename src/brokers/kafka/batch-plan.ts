/**
 * Cuts a batch into parts that are sent one after the other. The broker's `max.message.bytes` bounds a record batch,
 * which is what one produce request carries for one partition: a page of 1000 records of 1 KB for a topic of one
 * partition is above its default of 1 MB, the same page over twelve partitions is far below.
 *
 * Order: the records of one partition keep theirs, because a partition's records go to parts of rising number only; a
 * key is on one partition, so a key keeps its order too. A key that is used in several topics keeps its order over them:
 * none of its records goes to an earlier part than the one before it.
 */
import { BATCH_OVERHEAD_BYTES } from './produce-record.ts'
import type { ProduceRecord } from './produce-record.ts'

/** What bounds a part. */
export interface PlanLimits {
  /** The largest record batch the topic takes. */
  batchBytesOf(topic: string): number
  /** How many partitions the topic has; undefined when nobody knows yet, which plans as if it were one. */
  partitionsOf(topic: string): number | undefined
  /** The largest request, over all its partitions. */
  readonly requestBytes: number
}

interface Lane {
  part: number
  bytes: number
}

interface Part {
  readonly records: ProduceRecord[]
  bytes: number
}

interface TopicPlan {
  readonly batchBytes: number
  readonly lanes: Map<number, Lane>
  readonly partitions: number
}

/** The records as parts to be sent in this order; every record is in exactly one. */
export function planParts(records: readonly ProduceRecord[], limits: PlanLimits): ProduceRecord[][] {
  const parts: Part[] = []
  const topics = new Map<string, TopicPlan>()
  const keyParts = spansTopics(records) ? new Map<string, number>() : undefined
  for (const record of records) {
    const { topic } = record.message
    let plan = topics.get(topic)
    if (plan === undefined) {
      plan = { batchBytes: limits.batchBytesOf(topic), lanes: new Map(), partitions: limits.partitionsOf(topic) ?? 1 }
      topics.set(topic, plan)
    }
    const partition = record.hash % plan.partitions
    let lane = plan.lanes.get(partition)
    if (lane === undefined) plan.lanes.set(partition, (lane = { part: 0, bytes: BATCH_OVERHEAD_BYTES }))
    if (lane.bytes > BATCH_OVERHEAD_BYTES && lane.bytes + record.sizeBytes > plan.batchBytes) nextPart(lane)
    const { key } = record.message
    if (keyParts !== undefined && key !== null) while (lane.part < (keyParts.get(key) ?? 0)) nextPart(lane)
    let part = partAt(parts, lane.part)
    while (part.bytes > 0 && part.bytes + record.sizeBytes > limits.requestBytes) {
      nextPart(lane)
      part = partAt(parts, lane.part)
    }
    if (keyParts !== undefined && key !== null) keyParts.set(key, lane.part)
    lane.bytes += record.sizeBytes
    part.bytes += record.sizeBytes
    part.records.push(record)
  }
  return parts.filter((part) => part.records.length > 0).map((part) => part.records)
}

function spansTopics(records: readonly ProduceRecord[]): boolean {
  const first = records[0]?.message.topic
  return records.some((record) => record.message.topic !== first)
}

function nextPart(lane: Lane): void {
  lane.part++
  lane.bytes = BATCH_OVERHEAD_BYTES
}

function partAt(parts: Part[], index: number): Part {
  return (parts[index] ??= { records: [], bytes: 0 })
}
