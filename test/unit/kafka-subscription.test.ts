import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import type { IncomingMessage, Partition } from '../../src/brokers/broker.ts'
import { Connector } from '../../src/brokers/kafka/kafkajs/connections.ts'
import { settingsOf } from '../../src/brokers/kafka/kafkajs/options.ts'
import { KafkajsSubscription } from '../../src/brokers/kafka/kafkajs/subscription.ts'

type Listener = (event: { payload: object }) => void
type EachBatch = (payload: object) => Promise<void>

/** A kafkajs consumer that the test drives. */
class FakeConsumer {
  commitError: Error | undefined
  confirms = true
  eachBatch: EachBatch = () => Promise.resolve()
  readonly events = { COMMIT_OFFSETS: 'commit', CRASH: 'crash', GROUP_JOIN: 'join' }
  readonly resolved: string[] = []
  readonly resumed: object[] = []
  readonly sought: object[] = []
  readonly #listeners = new Map<string, Listener>()

  commitOffsets(offsets: object): Promise<void> {
    if (this.commitError !== undefined) return Promise.reject(this.commitError)
    if (this.confirms) this.emit('commit', offsets)
    return Promise.resolve()
  }
  connect(): Promise<void> {
    return Promise.resolve()
  }
  disconnect(): Promise<void> {
    return Promise.resolve()
  }
  emit(event: string, payload: object): void {
    this.#listeners.get(event)?.({ payload })
  }
  hand(partition: number, ...offsets: number[]): void {
    const messages = offsets.map((offset) => ({
      headers: {},
      key: null,
      offset: String(offset),
      timestamp: '1',
      value: null,
    }))
    void this.eachBatch({
      batch: { messages, partition, topic: 't' },
      isStale: () => false,
      resolveOffset: (offset: string) => this.resolved.push(`${partition}:${offset}`),
    })
  }
  join(memberId: string, partitions: number[]): void {
    this.emit('join', { memberAssignment: { t: partitions }, memberId })
  }
  on(event: string, listener: Listener): void {
    this.#listeners.set(event, listener)
  }
  pause(): void {}
  resume(partitions: object[]): void {
    this.resumed.push(...partitions)
  }
  run(config: { eachBatch: EachBatch }): Promise<void> {
    this.eachBatch = config.eachBatch
    return Promise.resolve()
  }
  seek(position: object): void {
    this.sought.push(position)
  }
  subscribe(): Promise<void> {
    return Promise.resolve()
  }
}

const p = (partition: number): Partition => ({ partition, topic: 't' })

describe('a kafkajs member', () => {
  let consumers: FakeConsumer[]
  let told: string[]
  let received: IncomingMessage[]
  let opened: () => void
  let subscription: KafkajsSubscription

  const latest = (): FakeConsumer => consumers.at(-1) as FakeConsumer
  const names = (partitions: readonly Partition[]): string => partitions.map((one) => one.partition).join()

  beforeEach(async () => {
    consumers = []
    told = []
    received = []
    opened = () => {}
    const consumer = (): FakeConsumer => {
      consumers.push(new FakeConsumer())
      opened()
      return latest()
    }
    class Kafka {
      consumer = consumer
    }
    const module = Promise.resolve({ Kafka, logLevel: { NOTHING: 0 } } as never)
    const connector = new Connector(settingsOf({ brokers: 'h:1' }), () => module)
    subscription = new KafkajsSubscription(connector, {
      group: 'g',
      onAssigned: (partitions) => told.push(`assigned ${names(partitions)}`),
      onError: (error) => told.push(`error ${(error as { code?: string }).code}`),
      onLost: (partitions) => told.push(`lost ${names(partitions)}`),
      onMessages: (_, messages) => received.push(...messages),
      onRevoking: () => Promise.resolve(),
      topics: ['t'],
    })
    await subscription.start()
    latest().join('member-1', [0, 1])
    latest().hand(0, 0, 1, 2)
  })
  afterEach(() => subscription.stop())

  test('a commit that kafkajs resolved without sending it is refused', async () => {
    latest().confirms = false
    await expect(subscription.commit([{ ...p(0), position: 1n }])).rejects.toMatchObject({ code: 'CONNECTION_LOST' })
    latest().confirms = true
    await subscription.commit([{ ...p(0), position: 1n }])
  })

  test('a commit on its way when the partition goes is refused', async () => {
    const consumer = latest()
    const commit = consumer.commitOffsets.bind(consumer)
    consumer.commitOffsets = async (offsets) => {
      consumer.join('member-1', [1])
      await commit(offsets)
    }
    await expect(subscription.commit([{ ...p(0), position: 1n }])).rejects.toMatchObject({ code: 'PARTITION_LOST' })
  })

  test('what stays over a rebalance is sought to where its hand-over ended', () => {
    latest().join('member-1', [0, 2])
    expect(told).toEqual(['assigned 0,1', 'lost 1', 'assigned 2'])
    expect(latest().sought).toEqual([{ offset: '3', partition: 0, topic: 't' }])
  })

  test('under a new member id all was lost, also what comes back, which is not paused any more', () => {
    subscription.pause([p(0)])
    latest().join('member-2', [0, 1])
    expect(told).toEqual(['assigned 0,1', 'lost 0,1', 'assigned 0,1'])
    expect(latest().sought).toEqual([])
    expect(latest().resumed).toContainEqual({ partitions: [0], topic: 't' })
    latest().hand(0, 0)
    expect(received.map((one) => one.position)).toEqual([0n, 1n, 2n, 0n])
  })

  test('nothing of a paused or a lost partition is handed over, nor counted as read', () => {
    subscription.pause([p(0)])
    latest().hand(0, 3)
    latest().hand(7, 0)
    expect(received).toHaveLength(3)
    expect(latest().resolved).toEqual(['0:2'])
    subscription.resume([p(0)])
    latest().hand(0, 3)
    expect(received).toHaveLength(4)
  })

  test('a crash that can pass loses all, is told, and makes a new member', async () => {
    const again = new Promise<void>((resolve) => (opened = resolve))
    latest().emit('crash', { error: Object.assign(new Error('closed'), { name: 'KafkaJSConnectionClosedError' }) })
    expect(told).toEqual(['assigned 0,1', 'lost 0,1'])
    await expect(subscription.commit([{ ...p(0), position: 1n }])).rejects.toMatchObject({ code: 'PARTITION_LOST' })
    await again
    latest().join('member-2', [1])
    expect(told.slice(2)).toEqual(['error BROKER_UNREACHABLE', 'assigned 1'])
    expect(consumers).toHaveLength(2)
  })

  test('a crash that cannot pass ends the member', async () => {
    latest().emit('crash', { error: Object.assign(new Error('no'), { name: 'KafkaJSSASLAuthenticationError' }) })
    await expect(subscription.stopped).rejects.toMatchObject({ code: 'CONFIG_INVALID' })
    await expect(subscription.commit([{ ...p(0), position: 1n }])).rejects.toThrow()
    expect(consumers).toHaveLength(1)
  })

  test('stop while a new member is awaited ends the wait', async () => {
    latest().emit('crash', { error: new Error('closed') })
    await subscription.stop()
    await subscription.stopped
    expect(consumers).toHaveLength(1)
  })
})
