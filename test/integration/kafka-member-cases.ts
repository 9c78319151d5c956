import { randomUUID } from 'node:crypto'
import { Kafka, logLevel } from 'kafkajs'
import { afterEach, beforeEach, expect, test } from 'vitest'
import type { Broker, IncomingMessage, Partition, Publisher, Subscription } from '../../src/brokers/broker.ts'
import type { KafkaOptions } from '../../src/brokers/kafka/kafka-options.ts'
import { delay, systemClock } from '../../src/core/clock.ts'
import type { OutgoingMessage } from '../../src/core/message.ts'
import { newId } from '../../src/core/ids.ts'
import { describeWith, services } from '../support/services.ts'

/** How an adapter is made. */
export type KafkaAdapter = (options: KafkaOptions) => Broker

/** How a member is made. */
export interface MemberOptions {
  readonly group?: string
  readonly sessionTimeoutMs?: number
  readonly startFrom?: 'earliest' | 'latest'
}

/** What a test of one client uses. */
export interface MemberStage {
  readonly brokers: () => string[]
  readonly join: (topic: string, options?: MemberOptions) => Promise<Member>
  /** One that has not started. */
  readonly member: (topic: string, options?: MemberOptions) => Member
  readonly publisher: () => Publisher
  readonly topicOf: (partitions: number) => Promise<string>
}

let seq = 0
/** Messages over some keys, in the order of their payload. */
export function page(topic: string, count: number, keys = 120): OutgoingMessage[] {
  return Array.from({ length: count }, (_, i) => ({
    headers: {},
    id: newId(),
    key: `k${i % keys}`,
    payload: Buffer.from(String(i)),
    seq: String(++seq),
    timeMs: 1_790_000_000_000,
    topic,
    type: 'test',
  }))
}

/** A member that writes down what it is told. */
export class Member {
  readonly assigned: Partition[] = []
  readonly errors: Error[] = []
  readonly lost: Partition[] = []
  readonly received: IncomingMessage[] = []
  readonly revoked: Partition[] = []
  readonly subscription: Subscription
  handle: (partition: Partition, messages: readonly IncomingMessage[]) => void = () => {}
  #changed = (): void => {}

  constructor(broker: Broker, topic: string, options: MemberOptions = {}) {
    this.subscription = broker.subscription({
      group: options.group ?? `group-${randomUUID()}`,
      onAssigned: (partitions) => {
        this.assigned.push(...partitions)
        this.#changed()
      },
      onError: (error) => this.errors.push(error),
      onLost: (partitions) => {
        this.lost.push(...partitions)
        this.#changed()
      },
      onMessages: (partition, messages) => {
        this.received.push(...messages)
        this.handle(partition, messages)
        this.#changed()
      },
      onRevoking: (partitions) => {
        this.revoked.push(...partitions)
        this.#changed()
        return Promise.resolve()
      },
      sessionTimeoutMs: options.sessionTimeoutMs ?? 6000,
      startFrom: options.startFrom ?? 'earliest',
      topics: [topic],
    })
  }

  /** Resolves when the predicate holds; the test's own timeout bounds it. */
  async until(predicate: () => boolean): Promise<void> {
    while (!predicate()) await new Promise<void>((resolve) => (this.#changed = resolve))
  }
}

/** What a member must hold on any Kafka client; `more` adds what only one client is asked for. */
export function memberCases(name: string, adapter: KafkaAdapter, more: (stage: MemberStage) => void = () => {}): void {
  describeWith('kafka', `a ${name} member of a group`, () => {
    let broker: Broker
    let brokers: string[]
    let publisher: Publisher
    let members: Member[]

    beforeEach(async () => {
      brokers = (services().kafka as string).split(',')
      broker = adapter({ brokers })
      members = []
      publisher = broker.publisher()
      await publisher.start()
    })
    afterEach(async () => {
      for (const member of members) await member.subscription.stop()
      await publisher.close()
      await broker.close()
    })

    async function topicOf(partitions: number): Promise<string> {
      const topic = `topic-${randomUUID()}`
      await broker.admin.createTopic(topic, { partitions })
      return topic
    }

    async function join(topic: string, options?: MemberOptions): Promise<Member> {
      const member = new Member(broker, topic, options)
      members.push(member)
      await member.subscription.start()
      return member
    }

    test('one paused partition of twelve does not slow the other eleven', async () => {
      const topic = await topicOf(12)
      const member = await join(topic)
      await member.until(() => member.assigned.length === 12)
      for (let i = 0; i < 20; i++) expect(await publisher.publish(page(topic, 1000))).toEqual([])
      await member.until(() => member.received.length === 20_000)
      const round = async (expected: number): Promise<number> => {
        const before = member.received.length
        const started = performance.now()
        for (let i = 0; i < 10; i++) expect(await publisher.publish(page(topic, 1000))).toEqual([])
        await member.until(() => member.received.length - before === expected)
        return performance.now() - started
      }
      const free = await round(10_000)
      const held = { topic, partition: 5 }
      const share = (member.received.filter((one) => one.partition === 5).length / member.received.length) * 10_000
      member.subscription.pause([held])
      // What the pause costs, it costs each time; what the machine is busy with, now and then.
      let [paused, rounds] = [Infinity, 0]
      while (paused >= free * 3 + 500 && ++rounds <= 4) paused = await round(10_000 - share)
      expect(paused).toBeLessThan(free * 3 + 500)
      member.subscription.resume([held])
      const all = 30_000 + rounds * 10_000
      await member.until(() => member.received.length === all)
      expect(new Set(member.received.map((one) => one.id)).size).toBe(all)
    })

    test('a partition that stays paused for several session timeouts is kept, and so are the others', async () => {
      const topic = await topicOf(2)
      const member = await join(topic, { sessionTimeoutMs: 2500 })
      await member.until(() => member.assigned.length === 2)
      member.subscription.pause([
        { topic, partition: 0 },
        { topic, partition: 1 },
      ])
      expect(await publisher.publish(page(topic, 100))).toEqual([])
      await delay(systemClock, 6500)
      expect(member.received).toEqual([])
      member.subscription.resume([
        { topic, partition: 0 },
        { topic, partition: 1 },
      ])
      await member.until(() => member.received.length === 100)
      expect(member.lost).toEqual([])
      expect(member.errors).toEqual([])
    })

    test('commits that are not waited for hold up no hand-over, and the last one counts', async () => {
      const topic = await topicOf(1)
      const group = `group-${randomUUID()}`
      const member = await join(topic, { group })
      const commits: Promise<void>[] = []
      member.handle = (partition, messages) => {
        for (const { position } of messages) commits.push(member.subscription.commit([{ ...partition, position }]))
      }
      for (let i = 0; i < 5; i++) expect(await publisher.publish(page(topic, 100))).toEqual([])
      await member.until(() => member.received.length === 500)
      await Promise.all(commits)
      await member.subscription.stop()
      expect(await publisher.publish(page(topic, 3))).toEqual([])
      const next = await join(topic, { group })
      await next.until(() => next.received.length === 3)
      expect(next.received[0]?.position).toBe(500n)
    })

    test('a commit of an earlier position takes nothing back', async () => {
      const topic = await topicOf(1)
      const group = `group-${randomUUID()}`
      const member = await join(topic, { group })
      expect(await publisher.publish(page(topic, 5))).toEqual([])
      await member.until(() => member.received.length === 5)
      await member.subscription.commit([{ partition: 0, position: 3n, topic }])
      await member.subscription.commit([{ partition: 0, position: 1n, topic }])
      await member.subscription.stop()
      const next = await join(topic, { group })
      await next.until(() => next.received.length > 0)
      expect(next.received[0]?.position).toBe(4n)
    })

    test('a partition that is paused while its messages wait behind another hand-over gets them after resume', async () => {
      const topic = await topicOf(2)
      expect(await publisher.publish(page(topic, 200))).toEqual([])
      const member = new Member(broker, topic)
      members.push(member)
      let other: Partition | undefined
      member.handle = ({ partition }) => {
        if (other !== undefined) return
        other = { topic, partition: 1 - partition }
        member.subscription.pause([other])
      }
      await member.subscription.start()
      await member.until(() => other !== undefined)
      const held = other as Partition
      const ofHeld = (): number => member.received.filter((one) => one.partition === held.partition).length
      // Several turns of the fetch loop.
      await delay(systemClock, 500)
      expect(ofHeld()).toBe(0)
      member.subscription.resume([held])
      await member.until(() => member.received.length === 200)
      expect(new Set(member.received.map((one) => one.id)).size).toBe(200)
    })

    test('a commit of what was not handed over, or of a partition nobody gave us, is refused', async () => {
      const topic = await topicOf(1)
      const member = await join(topic)
      expect(await publisher.publish(page(topic, 3))).toEqual([])
      await member.until(() => member.received.length === 3)
      const lost = { code: 'PARTITION_LOST' }
      await expect(member.subscription.commit([{ partition: 0, position: 3n, topic }])).rejects.toMatchObject(lost)
      await expect(member.subscription.commit([{ partition: 9, position: 0n, topic }])).rejects.toMatchObject(lost)
      await member.subscription.commit([{ partition: 0, position: 2n, topic }])
    })

    test('what a member keeps over a rebalance goes on where it was, though nothing was committed', async () => {
      const topic = await topicOf(4)
      const group = `group-${randomUUID()}`
      const first = await join(topic, { group })
      expect(await publisher.publish(page(topic, 400))).toEqual([])
      await first.until(() => first.received.length === 400)
      const second = await join(topic, { group })
      const gone = (): Partition[] => [...first.lost, ...first.revoked]
      await first.until(() => gone().length > 0)
      const kept = new Set([0, 1, 2, 3].filter((p) => !gone().some((one) => one.partition === p)))
      expect(kept.size).toBeGreaterThan(0)
      const ofKept = (): IncomingMessage[] => first.received.filter((one) => kept.has(one.partition))
      const half = ofKept().length
      expect(await publisher.publish(page(topic, 400))).toEqual([])
      await first.until(() => ofKept().length === 2 * half)
      await second.until(() => second.received.length === 2 * (400 - half))
      expect(new Set(ofKept().map((one) => one.id)).size).toBe(2 * half)
    })

    test('messages of a foreign client, a tombstone and a header given twice among them, are handed over', async () => {
      const topic = await topicOf(1)
      const producer = new Kafka({ brokers, logLevel: logLevel.NOTHING }).producer({ createPartitioner: () => () => 0 })
      await producer.connect()
      try {
        const headers = { twice: ['a', 'b'] }
        await producer.send({ messages: [{ headers, key: 'k', value: null }, { value: 'text' }], topic })
      } finally {
        await producer.disconnect()
      }
      const member = await join(topic)
      await member.until(() => member.received.length === 2)
      const [tombstone, text] = member.received
      expect(tombstone).toMatchObject({ id: `${topic}/0/0/${tombstone?.timeMs}`, key: 'k', payload: null, type: '' })
      expect({ ...tombstone?.headers }).toEqual({ twice: 'b' })
      expect(text).toMatchObject({ id: `${topic}/0/1/${text?.timeMs}`, key: null, payload: Buffer.from('text') })
      expect(text?.timeMs).toBeGreaterThan(1_700_000_000_000)
    })

    test('a log that begins anew is told as lost and assigned again, and read from its start', async () => {
      const topic = await topicOf(1)
      const member = await join(topic)
      expect(await publisher.publish(page(topic, 50))).toEqual([])
      await member.until(() => member.received.length === 50)
      await broker.admin.deleteTopic(topic)
      await broker.admin.createTopic(topic, { partitions: 1 })
      const again = page(topic, 20)
      for (let left = again; left.length > 0;) {
        const unresolved = await publisher.publish(left)
        left = unresolved.map((one) => left[one.index] as OutgoingMessage)
      }
      const wanted = new Set(again.map((one) => one.id))
      await member.until(() => member.received.filter((one) => wanted.has(one.id)).length === 20)
      expect(member.lost).toEqual([{ partition: 0, topic }])
      expect(member.assigned).toHaveLength(2)
    })

    test('stop leaves the group: nobody has to wait for the session to end', async () => {
      const topic = await topicOf(2)
      const group = `group-${randomUUID()}`
      const first = await join(topic, { group, sessionTimeoutMs: 120_000 })
      await first.until(() => first.assigned.length === 2)
      await first.subscription.stop()
      const second = await join(topic, { group, sessionTimeoutMs: 120_000 })
      await second.until(() => second.assigned.length === 2)
    })

    test('start says that the topic is missing', async () => {
      const member = new Member(broker, `missing-${randomUUID()}`)
      members.push(member)
      await expect(member.subscription.start()).rejects.toMatchObject({ code: 'CONFIG_INVALID' })
    })

    test('a callback that throws ends the member loudly, and its message is not lost to the group', async () => {
      const topic = await topicOf(1)
      const group = `group-${randomUUID()}`
      const member = await join(topic, { group })
      member.handle = () => {
        throw new Error('a bug')
      }
      expect(await publisher.publish(page(topic, 1))).toEqual([])
      await expect(member.subscription.stopped).rejects.toThrow('a bug')
      await member.subscription.stop()
      const next = await join(topic, { group })
      await next.until(() => next.received.length === 1)
    })

    more({
      brokers: () => brokers,
      join,
      member: (topic, options) => {
        const member = new Member(broker, topic, options)
        members.push(member)
        return member
      },
      publisher: () => publisher,
      topicOf,
    })
  })
}
