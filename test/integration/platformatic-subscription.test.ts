import { randomUUID } from 'node:crypto'
import { Kafka, logLevel } from 'kafkajs'
import { expect, test } from 'vitest'
import { kafkajs } from '../../src/brokers/kafka/kafkajs/index.ts'
import { platformatic } from '../../src/brokers/kafka/platformatic/index.ts'
import { Member, memberCases, page } from './kafka-member-cases.ts'

memberCases('platformatic', platformatic, ({ brokers, join, member, publisher, topicOf }) => {
  test('a member of kafkajs and one of platformatic share a group, so that a service can change over', async () => {
    const topic = await topicOf(4)
    const group = `group-${randomUUID()}`
    const old = kafkajs({ brokers: brokers() })
    const first = new Member(old, topic, { group })
    try {
      await first.subscription.start()
      await first.until(() => first.assigned.length === 4)
      expect(await publisher().publish(page(topic, 200))).toEqual([])
      await first.until(() => first.received.length === 200)
      const second = await join(topic, { group })
      await second.until(() => second.assigned.length === 2)
      await first.until(() => first.lost.length === 2)
      await first.subscription.stop()
      await second.until(() => second.assigned.length === 4)
      const fresh = page(topic, 200)
      const ids = new Set(fresh.map((one) => one.id))
      expect(await publisher().publish(fresh)).toEqual([])
      await second.until(() => second.received.filter((one) => ids.has(one.id)).length === 200)
    } finally {
      await first.subscription.stop()
      await old.close()
    }
  })

  test('a group that begins at the latest has a position before it has a message', async () => {
    const topic = await topicOf(2)
    const group = `group-${randomUUID()}`
    expect(await publisher().publish(page(topic, 20))).toEqual([])
    const first = await join(topic, { group, startFrom: 'latest' })
    const admin = new Kafka({ brokers: brokers(), logLevel: logLevel.NOTHING }).admin()
    await admin.connect()
    try {
      const committed = async (): Promise<number> => {
        const [own] = await admin.fetchOffsets({ groupId: group, topics: [topic] })
        return (own?.partitions ?? []).reduce((sum, one) => sum + Math.max(0, Number(one.offset)), 0)
      }
      await expect.poll(committed, { interval: 50, timeout: 20_000 }).toBe(20)
    } finally {
      await admin.disconnect()
    }
    await first.subscription.stop()
    expect(first.received).toEqual([])
    const between = page(topic, 30)
    expect(await publisher().publish(between)).toEqual([])
    const second = await join(topic, { group, startFrom: 'latest' })
    await second.until(() => second.received.length === 30)
    expect(new Set(second.received.map((one) => one.id))).toEqual(new Set(between.map((one) => one.id)))
  })

  test('a log whose beginning was deleted past the reader goes on at its new beginning', async () => {
    const topic = await topicOf(1)
    const reader = await join(topic)
    expect(await publisher().publish(page(topic, 10))).toEqual([])
    await reader.until(() => reader.received.length === 10)
    reader.subscription.pause([{ partition: 0, topic }])
    expect(await publisher().publish(page(topic, 50))).toEqual([])
    const admin = new Kafka({ brokers: brokers(), logLevel: logLevel.NOTHING }).admin()
    await admin.connect()
    try {
      // It knows of no topic before it was asked for one.
      await admin.fetchTopicOffsets(topic)
      await admin.deleteTopicRecords({ partitions: [{ offset: '40', partition: 0 }], topic })
    } finally {
      await admin.disconnect()
    }
    reader.subscription.resume([{ partition: 0, topic }])
    await reader.until(() => reader.received.length === 30)
    expect(reader.received[10]?.position).toBe(40n)
    expect(reader.lost).toEqual([])
  })

  test('a member that slept through its session hands nothing over before it has told what it lost', async () => {
    const topic = await topicOf(1)
    const reader = member(topic, { sessionTimeoutMs: 1500 })
    const order: string[] = []
    let lostBefore = 0
    reader.handle = () => order.push(reader.lost.length > lostBefore ? 'after' : 'before')
    await reader.subscription.start()
    expect(await publisher().publish(page(topic, 10))).toEqual([])
    await reader.until(() => reader.received.length === 10)
    order.length = 0
    lostBefore = reader.lost.length
    const held = [{ partition: 0, topic }]
    reader.subscription.pause(held)
    expect(await publisher().publish(page(topic, 10))).toEqual([])
    reader.subscription.resume(held)
    // The fetch is written within this turn; what it brings is there when we wake.
    for (let turn = 0; turn < 100; turn++) await Promise.resolve()
    // Asleep and not busy: the broker needs the core to find out.
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 4000)
    await reader.until(() => new Set(reader.received.map((one) => one.id)).size === 20)
    expect(new Set(order)).toEqual(new Set(['after']))
  })

  test('what goes to another member is revoked, not lost, and its last commit counts', async () => {
    const topic = await topicOf(4)
    const group = `group-${randomUUID()}`
    const first = await join(topic, { group })
    expect(await publisher().publish(page(topic, 400))).toEqual([])
    await first.until(() => first.received.length === 400)
    const second = await join(topic, { group })
    await second.until(() => second.assigned.length === 2)
    expect(first.lost).toEqual([])
    expect(first.revoked).toHaveLength(2)
    expect(first.assigned).toHaveLength(4)
    await first.subscription.stop()
    await second.until(() => second.assigned.length === 4)
    expect(second.lost).toEqual([])
  })
})
