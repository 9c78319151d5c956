import { randomUUID } from 'node:crypto'
import { afterAll, beforeAll, expect, test } from 'vitest'
import type { IncomingMessage, Partition, Subscription, Unresolved } from '../../src/brokers/broker.ts'
import { delay, systemClock } from '../../src/core/clock.ts'
import type { OutgoingMessage } from '../../src/core/message.ts'
import { newId } from '../../src/core/ids.ts'
import { startKafka } from '../../src/testing/services/index.ts'
import { publishAll } from '../support/kafka-log.ts'
import { describeWith } from '../support/services.ts'
import type { KafkaAdapter } from './kafka-member-cases.ts'

const KEYS = 40

let seq = 0
function page(topic: string, round: number, size: number): OutgoingMessage[] {
  return Array.from({ length: size }, (_, i) => ({
    headers: {},
    id: newId(),
    key: `k${i % KEYS}`,
    payload: Buffer.from(`${round}:${i}`),
    seq: String(++seq),
    timeMs: 1_790_000_000_000,
    topic,
    type: 'test',
  }))
}

/** Reads a topic from its beginning until every id was seen. */
async function readAll(
  adapter: KafkaAdapter,
  address: string,
  topic: string,
  ids: ReadonlySet<string>,
): Promise<IncomingMessage[]> {
  const broker = adapter({ brokers: address })
  const received: IncomingMessage[] = []
  const missing = new Set(ids)
  const read = new AbortController()
  let subscription: Subscription | undefined
  try {
    await new Promise<void>((resolve, reject) => {
      subscription = broker.subscription({
        group: `reader-${randomUUID()}`,
        onAssigned: () => {},
        onError: () => {},
        onLost: () => {},
        onMessages: (_, messages) => {
          received.push(...messages)
          for (const one of messages) missing.delete(one.id)
          if (missing.size === 0) resolve()
        },
        onRevoking: () => Promise.resolve(),
        topics: [topic],
      })
      subscription.start().catch(reject)
      subscription.stopped.catch(reject)
      void delay(systemClock, 60_000, read.signal).then(() =>
        reject(new Error(`${missing.size} acknowledged messages are not there`)),
      )
    })
  } finally {
    read.abort()
    await subscription?.stop()
    await broker.close()
  }
  return received
}

/** Every key's messages, by their first sighting, are in the order in which they were published. */
function expectOrder(received: readonly IncomingMessage[], sent: readonly OutgoingMessage[]): void {
  const place = new Map(sent.map((one, i) => [one.id, i]))
  for (const [key, messages] of Map.groupBy(received, (one) => one.key)) {
    const places = [...new Set(messages.map((one) => place.get(one.id) ?? -1))]
    expect(places, `order of ${key}`).toEqual(places.toSorted((a, b) => a - b))
  }
}

/** What an adapter must hold on a broker that dies or hangs. */
export function brokerDeathCases(name: string, adapter: KafkaAdapter): void {
  describeWith('private kafka', `a Kafka broker that dies under ${name}`, () => {
    let kafka: Awaited<ReturnType<typeof startKafka>>
    beforeAll(async () => {
      kafka = await startKafka()
    })
    afterAll(async () => {
      await kafka.dispose()
    })

    test(
      'loses nothing that was acknowledged, keeps the order of keys, and is back within seconds',
      { timeout: 120_000 },
      async () => {
        const broker = adapter({ brokers: kafka.address })
        const topic = `topic-${randomUUID()}`
        await broker.admin.createTopic(topic, { partitions: 6 })
        const publisher = broker.publisher({ timeoutMs: 4000 })
        await publisher.start()
        const sent: OutgoingMessage[] = []
        const outcomes: Unresolved[] = []
        let restarted: Promise<void> | undefined
        let upAt = 0
        let backAt = 0
        for (let round = 0; round < 60; round++) {
          const batch = page(topic, round, 300)
          sent.push(...batch)
          // As the relay does: what is not stored is sent again, in order, before anything new.
          for (let left = batch; left.length > 0;) {
            const publishing = publisher.publish(left)
            if (round === 20 && restarted === undefined) {
              restarted = (async () => {
                await kafka.kill()
                await delay(systemClock, 5000)
                await kafka.start()
                upAt = performance.now()
              })()
            }
            const unresolved = await publishing
            outcomes.push(...unresolved)
            left = unresolved.map((one) => left[one.index] as OutgoingMessage)
            if (left.length > 0) await delay(systemClock, 100)
            else if (upAt > 0 && backAt === 0) backAt = performance.now()
          }
        }
        await restarted
        await publisher.close()
        expect(outcomes.length, 'something was in flight when it died').toBeGreaterThan(0)
        expect(outcomes.every((one) => one.class === 'retry')).toBe(true)
        expect(backAt - upAt, 'ms from the start of the broker to the next stored page').toBeLessThan(10_000)
        const received = await readAll(adapter, kafka.address, topic, new Set(sent.map((one) => one.id)))
        expectOrder(received, sent)
        await broker.close()
      },
    )

    test(
      'one that hangs leaves the outcome unknown in time; the half that was stored does no harm',
      { timeout: 120_000 },
      async () => {
        const broker = adapter({ brokers: kafka.address })
        const topic = `topic-${randomUUID()}`
        await broker.admin.createTopic(topic, { partitions: 3 })
        const publisher = broker.publisher({ timeoutMs: 2000 })
        await publisher.start()
        const first = page(topic, 0, 120)
        await publishAll(publisher, first)
        const second = page(topic, 1, 120)
        process.kill(kafka.pid, 'SIGSTOP')
        try {
          const started = performance.now()
          const unresolved = await publisher.publish(second)
          expect(performance.now() - started).toBeLessThan(10_000)
          expect(unresolved.map((one) => [one.index, one.outcome, one.class])).toEqual(
            second.map((_, i) => [i, 'unknown', 'retry']),
          )
          const nobody = await publisher.publish(second)
          expect(
            nobody.every((one) => one.outcome === 'failed' && one.class === 'retry'),
            'nothing was sent',
          ).toBe(true)
        } finally {
          process.kill(kafka.pid, 'SIGCONT')
        }
        await publishAll(publisher, second)
        const third = page(topic, 2, 120)
        await publishAll(publisher, third)
        const sent = [...first, ...second, ...third]
        expectOrder(await readAll(adapter, kafka.address, topic, new Set(sent.map((one) => one.id))), sent)
        await publisher.close()
        await broker.close()
      },
    )

    test(
      'a member rides it out: every message is handed over, in the order of its key',
      { timeout: 120_000 },
      async () => {
        const broker = adapter({ brokers: kafka.address })
        const topic = `topic-${randomUUID()}`
        await broker.admin.createTopic(topic, { partitions: 4 })
        const publisher = broker.publisher()
        await publisher.start()
        const received: IncomingMessage[] = []
        const errors: Error[] = []
        let waiter: { readonly count: number; readonly resolve: () => void } | undefined
        const seen = (): number => new Set(received.map((one) => one.id)).size
        const until = (count: number): Promise<void> =>
          seen() >= count ? Promise.resolve() : new Promise((resolve) => (waiter = { count, resolve }))
        const subscription = broker.subscription({
          group: `group-${randomUUID()}`,
          onAssigned: () => {},
          onError: (error) => errors.push(error),
          onLost: () => {},
          onMessages: (partition: Partition, messages) => {
            received.push(...messages)
            const position = messages.at(-1)?.position ?? 0n
            subscription.commit([{ ...partition, position }]).catch((error: Error) => errors.push(error))
            if (waiter !== undefined && seen() >= waiter.count) waiter.resolve()
          },
          onRevoking: () => Promise.resolve(),
          sessionTimeoutMs: 6000,
          topics: [topic],
        })
        await subscription.start()
        const before = page(topic, 0, 400)
        expect(await publisher.publish(before)).toEqual([])
        await until(400)
        await kafka.kill()
        await delay(systemClock, 5000)
        await kafka.start()
        const after = page(topic, 1, 400)
        await publishAll(publisher, after)
        await until(800)
        expectOrder(received, [...before, ...after])
        await subscription.stop()
        await subscription.stopped
        await publisher.close()
        await broker.close()
      },
    )
  })
}
