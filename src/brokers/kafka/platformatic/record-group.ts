import type { ProduceRecord } from '../produce-record.ts'

/** Records of one partition that are sent as one record batch. */
export class RecordGroup {
  /** How often it was written to a connection. */
  attempts = 0
  /** The batch as it was first sent under the present producer id: a retry sends the same bytes. */
  encoded: Buffer | undefined = undefined
  /** An attempt had no answer, so that it may be stored whatever later attempts say. */
  indefinite = false
  readonly partition: number
  records: readonly ProduceRecord[]
  readonly topic: string

  constructor(topic: string, partition: number, records: readonly ProduceRecord[]) {
    this.topic = topic
    this.partition = partition
    this.records = records
  }

  get name(): string {
    return `${this.topic}:${this.partition}`
  }

  /** The two halves, in order. What may be stored of the whole may be stored of each. */
  halves(): RecordGroup[] {
    const middle = this.records.length >> 1
    return [this.records.slice(0, middle), this.records.slice(middle)].map((records) => {
      const half = new RecordGroup(this.topic, this.partition, records)
      half.indefinite = this.indefinite
      return half
    })
  }
}

/**
 * The records in turns, to be sent one after the other: a key that goes from one topic to another does so in the next
 * turn, for its record in the one may be refused while the other is well. Mostly there is one turn.
 */
export function byTurns(records: readonly ProduceRecord[]): (readonly ProduceRecord[])[] {
  const topic = records[0]?.message.topic
  if (records.every((record) => record.message.topic === topic)) return [records]
  const keys = new Map<string, { readonly topic: string; readonly turn: number }>()
  const lanes = new Map<string, number>()
  const turns: ProduceRecord[][] = []
  for (const record of records) {
    const { key, topic: own } = record.message
    const lane = `${record.partition} ${own}`
    const last = key === null ? undefined : keys.get(key)
    const after = last === undefined ? 0 : last.topic === own ? last.turn : last.turn + 1
    // The records of a partition keep their order.
    const turn = Math.max(after, lanes.get(lane) ?? 0)
    if (key !== null) keys.set(key, { topic: own, turn })
    lanes.set(lane, turn)
    ;(turns[turn] ??= []).push(record)
  }
  return turns
}
