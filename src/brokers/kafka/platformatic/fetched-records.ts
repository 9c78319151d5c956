/**
 * What a fetch brought of one partition, as messages: what stands before the offset asked for is left out (a broker
 * gives whole batches), and so are control records and the records of aborted transactions.
 */
import type { KafkaRecord, RecordsBatch } from '@platformatic/kafka'
import type { IncomingMessage, Partition } from '../../broker.ts'
import { incomingMessage } from '../incoming.ts'
import type { ApiAnswer } from './apis.ts'

const TRANSACTIONAL = 1 << 4
const CONTROL = 1 << 5

/** What a fetch brought. */
export interface Fetched {
  /** The leader epoch of the last batch; -1 when there was none. */
  readonly leaderEpoch: number
  readonly messages: IncomingMessage[]
  /** Where to go on: after all that was read, also where that gave no message. */
  readonly next: bigint
}

/** Reads the answer for one partition that was asked for from `from` on. */
export function readFetched({ partition, topic }: Partition, from: bigint, answer: Answer): Fetched {
  const messages: IncomingMessage[] = []
  const aborted = [...(answer.abortedTransactions ?? [])].toSorted((a, b) => (a.firstOffset < b.firstOffset ? -1 : 1))
  const aborting = new Set<bigint>()
  let leaderEpoch = -1
  let next = from
  for (const batch of answer.records ?? []) {
    const last = batch.firstOffset + BigInt(batch.lastOffsetDelta)
    leaderEpoch = batch.partitionLeaderEpoch
    while (aborted[0] !== undefined && aborted[0].firstOffset <= last) {
      aborting.add(aborted[0].producerId)
      aborted.shift()
    }
    if ((batch.attributes & CONTROL) !== 0) {
      // Its only record ends the transaction; an abort has type 0.
      if (batch.records[0]?.key?.readInt16BE(2) === 0) aborting.delete(batch.producerId)
    } else if ((batch.attributes & TRANSACTIONAL) === 0 || !aborting.has(batch.producerId)) {
      addMessages(messages, batch, topic, partition, from)
    }
    if (last >= next) next = last + 1n
  }
  return { leaderEpoch, messages, next }
}

type PartitionAnswer = ApiAnswer<'fetch'>['responses'][number]['partitions'][number]
type Answer = Pick<PartitionAnswer, 'abortedTransactions' | 'records'>

function addMessages(
  messages: IncomingMessage[],
  batch: RecordsBatch,
  topic: string,
  partition: number,
  from: bigint,
): void {
  for (const record of batch.records) {
    const offset = batch.firstOffset + BigInt(record.offsetDelta)
    if (offset < from) continue
    const { headers, sizeBytes } = measured(record)
    const timestamp = Number(batch.firstTimestamp + record.timestampDelta)
    const { key, value } = record
    messages.push(incomingMessage({ headers, key, offset, partition, sizeBytes, timestamp, topic, value }))
  }
}

/** The headers as text; of one that is given several times the last counts, as in Kafka's own clients. */
function measured({ headers, key, value }: KafkaRecord): { headers: [string, string][]; sizeBytes: number } {
  let sizeBytes = (key?.length ?? 0) + (value?.length ?? 0)
  const texts: [string, string][] = []
  for (const [name, content] of headers) {
    sizeBytes += (name?.length ?? 0) + (content?.length ?? 0)
    texts.push([name?.toString() ?? '', content?.toString() ?? ''])
  }
  return { headers: texts, sizeBytes }
}
