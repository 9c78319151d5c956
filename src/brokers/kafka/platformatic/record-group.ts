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

  /** The two halves, in order. */
  halves(): RecordGroup[] {
    const middle = this.records.length >> 1
    return [this.records.slice(0, middle), this.records.slice(middle)].map(
      (half) => new RecordGroup(this.topic, this.partition, half),
    )
  }
}
