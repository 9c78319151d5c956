import { createContextKey, context } from '@opentelemetry/api'
import { AsyncLocalStorageContextManager } from '@opentelemetry/context-async-hooks'
import { KafkaJSNumberOfRetriesExceeded, KafkaJSProtocolError } from 'kafkajs'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { Connector } from '../../src/brokers/kafka/kafkajs/connections.ts'
import { settingsOf } from '../../src/brokers/kafka/kafkajs/options.ts'
import { KafkajsPublisher } from '../../src/brokers/kafka/kafkajs/publisher.ts'
import type { OutgoingMessage } from '../../src/core/message.ts'

/** A record as it reaches the wire: what kafkajs would have sent for one partition. */
interface Sent {
  readonly id: string
  readonly partition: number
  readonly producer: number
  readonly topic: string
}

interface Batch {
  readonly attempt: number
  /** The records by partition. */
  readonly groups: ReadonlyMap<string, readonly Sent[]>
  readonly producer: number
}

type Topics = readonly { readonly topic: string; readonly messages: readonly { headers: Record<string, string> }[] }[]

type Answer = Error | 'hang' | 'retry' | { readonly omit: string } | undefined

/**
 * A kafkajs of which the test decides what the broker answers: an error, nothing at all, an answer that leaves a
 * partition out, or kafkajs' own retry. What is answered well is stored.
 */
class FakeKafkajs {
  answer: (batch: Batch) => Answer = () => undefined
  connectError: Error | undefined
  partitions = 4
  producers = 0
  readonly stored: Sent[] = []
  readonly batches: Batch[] = []
  /** Hanging sends, as kafkajs would go on with them later. */
  readonly hanging: (() => void)[] = []

  load(): Promise<never> {
    const producer = (options: { createPartitioner: () => (args: object) => number }): object => {
      const number = ++this.producers
      const partitioner = options.createPartitioner()
      return {
        connect: () => (this.connectError === undefined ? Promise.resolve() : Promise.reject(this.connectError)),
        disconnect: () => Promise.resolve(),
        sendBatch: (request: { topicMessages: Topics }) => this.send(number, partitioner, request.topicMessages),
      }
    }
    class Kafka {
      producer = producer
    }
    return Promise.resolve({ Kafka, logLevel: { NOTHING: 0 } } as never)
  }

  async send(producer: number, partitioner: (args: object) => number, topics: Topics): Promise<object[]> {
    for (let attempt = 1; ; attempt++) {
      const partitionMetadata = Array.from({ length: this.partitions }, (_, partitionId) => ({
        leader: 1,
        partitionId,
      }))
      const sent = topics.flatMap(({ topic, messages }) =>
        messages.map((message) => ({
          id: message.headers['millrace-id'] as string,
          partition: partitioner({ message, partitionMetadata, topic }),
          producer,
          topic,
        })),
      )
      const groups = Map.groupBy(sent, (one) => `${one.topic}/${one.partition}`)
      const batch = { attempt, groups, producer }
      this.batches.push(batch)
      const answer = this.answer(batch)
      if (answer instanceof Error) throw answer
      if (answer === 'retry') continue
      if (answer === 'hang') {
        await new Promise<void>((resolve) => this.hanging.push(resolve))
        continue
      }
      const answered = [...groups].filter(([name]) => name !== answer?.omit)
      for (const [, group] of answered) this.stored.push(...group)
      return answered.map(([, [one]]) => ({ errorCode: 0, partition: one?.partition, topicName: one?.topic }))
    }
  }
}

const protocol = (type: string): Error => new KafkaJSProtocolError({ code: 1, message: type, type } as never)
const gaveUp = (error: Error): Error =>
  new KafkaJSNumberOfRetriesExceeded(error as never, { retryCount: 1, retryTime: 1 })
const died = (): Error => gaveUp(Object.assign(new Error('closed'), { name: 'KafkaJSConnectionClosedError' }))

let count = 0
function message(key: string | null, fields: Partial<OutgoingMessage> = {}): OutgoingMessage {
  const id = `id-${++count}`
  return { headers: {}, id, key, payload: Buffer.from(id), seq: '1', timeMs: 1, topic: 't', type: 'x', ...fields }
}
const keyed = (n: number, keys = 20): OutgoingMessage[] => Array.from({ length: n }, (_, i) => message(`k${i % keys}`))
const ids = (messages: readonly { readonly id: string }[]): string[] => messages.map((one) => one.id)

describe('the kafkajs publisher', () => {
  let fake: FakeKafkajs
  let publisher: KafkajsPublisher

  async function make(options: { timeoutMs?: number; unknownTopicMs?: number } = {}): Promise<void> {
    fake = new FakeKafkajs()
    const settings = settingsOf({ brokers: 'h:1', unknownTopicMs: options.unknownTopicMs ?? 60_000 })
    publisher = new KafkajsPublisher(new Connector(settings, () => fake.load()), settings, {
      timeoutMs: options.timeoutMs ?? 2000,
    })
    await publisher.start()
  }

  beforeEach(() => make())
  afterEach(() => publisher.close())

  test('sends a page as one batch, in order', async () => {
    const page = keyed(100)
    expect(await publisher.publish(page)).toEqual([])
    expect(fake.batches).toHaveLength(1)
    for (const [, group] of fake.batches[0]?.groups ?? []) {
      const sent = ids(group)
      expect(sent).toEqual(ids(page).filter((id) => sent.includes(id)))
    }
  })

  test('a partition that is unwell keeps no other waiting', async () => {
    fake.answer = ({ groups }) => (groups.has('t/3') ? gaveUp(protocol('NOT_ENOUGH_REPLICAS')) : undefined)
    const page = keyed(100)
    const unresolved = await publisher.publish(page)
    const sick = [...(fake.batches[0]?.groups.get('t/3') ?? [])]
    expect(sick.length).toBeGreaterThan(0)
    expect(unresolved.map((one) => page[one.index]?.id)).toEqual(ids(page).filter((id) => ids(sick).includes(id)))
    expect(unresolved.every((one) => one.class === 'retry')).toBe(true)
    expect(new Set(ids(fake.stored))).toEqual(new Set(ids(page).filter((id) => !ids(sick).includes(id))))
  })

  test('records that kafkajs left out of its answer are not taken for stored', async () => {
    fake.answer = ({ producer }) => (producer === 1 ? { omit: 't/2' } : undefined)
    const page = keyed(100)
    expect(await publisher.publish(page)).toEqual([])
    expect(new Set(ids(fake.stored))).toEqual(new Set(ids(page)))
    expect(fake.stored).toHaveLength(100)
    expect(fake.producers).toBe(2)
  })

  test('and are unknown when they stay out', async () => {
    fake.answer = () => ({ omit: 't/2' })
    const page = keyed(100)
    const unresolved = await publisher.publish(page)
    expect(unresolved.length).toBeGreaterThan(0)
    expect(unresolved.every((one) => one.outcome === 'unknown' && one.class === 'retry')).toBe(true)
    expect(new Set([...ids(fake.stored), ...unresolved.map((one) => page[one.index]?.id)])).toEqual(new Set(ids(page)))
  })

  test('the record to blame is found and told, the later ones of its key are held, all others are stored in order', async () => {
    const page = keyed(200)
    const bad = page[37] as OutgoingMessage
    fake.answer = ({ groups }) =>
      [...groups.values()].flat().some((one) => one.id === bad.id) ? protocol('INVALID_RECORD') : undefined
    const unresolved = await publisher.publish(page)
    const later = page.filter((one, i) => one.key === bad.key && i > 37)
    expect(unresolved[0]).toMatchObject({ class: 'poison', index: 37, outcome: 'failed' })
    expect(unresolved[0]?.error).toMatchObject({ code: 'MESSAGE_REJECTED' })
    expect(unresolved.slice(1).map((one) => page[one.index]?.id)).toEqual(ids(later))
    expect(unresolved.slice(1).every((one) => one.outcome === 'unsent' && one.class === 'poison')).toBe(true)
    const held = new Set([bad.id, ...ids(later)])
    const expected = page.filter((one) => !held.has(one.id))
    expect(new Set(ids(fake.stored))).toEqual(new Set(ids(expected)))
    for (const [key, own] of Map.groupBy(expected, (one) => one.key)) {
      const stored = ids(fake.stored).filter((id) => own.some((one) => one.id === id))
      expect([...new Set(stored)], String(key)).toEqual(ids(own))
    }
  })

  test('a page that the topic takes only in smaller batches is cut, and the next page at once', async () => {
    fake.partitions = 1
    fake.answer = ({ groups }) => ((groups.get('t/0')?.length ?? 0) > 30 ? protocol('MESSAGE_TOO_LARGE') : undefined)
    const page = keyed(100)
    expect(await publisher.publish(page)).toEqual([])
    expect(ids(fake.stored)).toEqual(ids(page))
    const before = fake.batches.length
    expect(await publisher.publish(keyed(100))).toEqual([])
    const sizes = fake.batches.slice(before).map(({ groups }) => groups.get('t/0')?.length ?? 0)
    expect(Math.max(...sizes), 'nothing is refused a second time').toBeLessThanOrEqual(30)
  })

  test('an answer that did not come leaves the outcome unknown, and the producer is replaced', async () => {
    fake.answer = () => died()
    const page = keyed(10)
    const unresolved = await publisher.publish(page)
    expect(unresolved.map((one) => one.index)).toEqual(page.map((_, i) => i))
    expect(unresolved.every((one) => one.outcome === 'unknown' && one.class === 'retry')).toBe(true)
    const old = fake.producers
    fake.answer = () => undefined
    expect(await publisher.publish(page)).toEqual([])
    expect(fake.producers).toBe(old + 1)
    expect(ids(fake.stored)).toHaveLength(10)
  })

  test('after an unknown outcome the same producer sends nothing more, also of the same page', async () => {
    fake.partitions = 1
    const payload = Buffer.alloc(600 * 1024)
    const page = [message('a', { payload }), message('b', { payload })]
    fake.answer = ({ groups }) => (groups.get('t/0')?.[0]?.id === page[0]?.id ? died() : undefined)
    expect(await publisher.publish(page)).toMatchObject([{ index: 0, outcome: 'unknown' }])
    // With the sequence number of the first, which the broker may have, it would be dropped and taken for stored.
    expect(fake.stored).toMatchObject([{ id: page[1]?.id, producer: 2 }])
  })

  test('a half of unknown outcome keeps the other half from being sent by the same producer', async () => {
    fake.partitions = 1
    const page = keyed(4)
    fake.answer = ({ groups }) => {
      const sent = groups.get('t/0') ?? []
      if (sent.length > 2) return protocol('INVALID_RECORD')
      return sent[0]?.id === page[0]?.id ? died() : undefined
    }
    const unresolved = await publisher.publish(page)
    expect(unresolved.map(({ class: c, index }) => [index, c])).toEqual(page.map((_, index) => [index, 'retry']))
    expect(fake.stored).toEqual([])
    fake.answer = () => undefined
    expect(await publisher.publish(page)).toEqual([])
    expect(fake.stored.every((one) => one.producer === 2)).toBe(true)
  })

  test('publish answers in its time, and what kafkajs still holds never reaches the wire', async () => {
    await publisher.close()
    await make({ timeoutMs: 600 })
    fake.answer = ({ producer }) => (producer === 1 ? 'hang' : undefined)
    const page = keyed(10)
    const started = performance.now()
    const unresolved = await publisher.publish(page)
    expect(performance.now() - started).toBeLessThan(5000)
    expect(unresolved.map((one) => one.outcome)).toEqual(page.map(() => 'unknown'))
    expect(await publisher.publish(page)).toEqual([])
    const batches = fake.batches.length
    for (const goOn of fake.hanging) goOn()
    await publisher.close()
    expect(fake.batches).toHaveLength(batches)
    expect(ids(fake.stored)).toEqual(ids(fake.stored.filter((one) => one.producer === 2)))
  })

  test('a record keeps its partition over every retry, also without a key and when partitions are added', async () => {
    fake.answer = ({ attempt }) => {
      fake.partitions += 3
      return attempt < 4 ? 'retry' : undefined
    }
    expect(await publisher.publish([...keyed(20), message(null), message(null), message(null)])).toEqual([])
    const shapes = fake.batches.map(({ groups }) => [...groups].map(([name, group]) => [name, ids(group)]))
    expect(shapes).toHaveLength(4)
    for (const shape of shapes) expect(shape).toEqual(shapes[0])
  })

  test('of a key that is used in two topics nothing is stored in one while the other refuses what comes before', async () => {
    fake.answer = ({ groups }) =>
      [...groups.keys()].some((name) => name.startsWith('sick/')) ? gaveUp(protocol('NOT_ENOUGH_REPLICAS')) : undefined
    const sick = { topic: 'sick' }
    const page = [message('a'), message('b', sick), message('b'), message('c'), message('a', sick), message('a')]
    const unresolved = await publisher.publish(page)
    expect(unresolved.map(({ index, outcome }) => [index, outcome])).toEqual([
      [1, 'unknown'],
      [2, 'unsent'],
      [4, 'unknown'],
      [5, 'unsent'],
    ])
    expect(new Set(ids(fake.stored))).toEqual(new Set([page[0]?.id, page[3]?.id]))
    fake.answer = () => undefined
    const rest = unresolved.map((one) => page[one.index] as OutgoingMessage)
    expect(await publisher.publish(rest)).toEqual([])
    expect(new Set(ids(fake.stored))).toEqual(new Set(ids(page)))
  })

  test('a missing topic is retried while it may be about to be made, then poison; other topics go on', async () => {
    const missing = (): Error => gaveUp(protocol('UNKNOWN_TOPIC_OR_PARTITION'))
    fake.answer = ({ groups }) => ([...groups.keys()].some((name) => name.startsWith('none/')) ? missing() : undefined)
    const page = [message('a'), message('b', { topic: 'none' }), message('c')]
    const first = await publisher.publish(page)
    expect(first.map(({ class: c, index }) => [index, c])).toEqual([[1, 'retry']])
    expect(new Set(ids(fake.stored))).toEqual(new Set([page[0]?.id, page[2]?.id]))
    await publisher.close()
    await make({ unknownTopicMs: 0 })
    fake.answer = missing
    const second = await publisher.publish(page.slice(1, 2))
    expect(second).toMatchObject([{ class: 'poison', index: 0, outcome: 'failed' }])
  })

  test('a topic nobody may write to is fatal for its messages only', async () => {
    fake.answer = ({ groups }) =>
      [...groups.keys()].some((name) => name.startsWith('secret/')) ? protocol('TOPIC_AUTHORIZATION_FAILED') : undefined
    const unresolved = await publisher.publish([message('a'), message('b', { topic: 'secret' })])
    expect(unresolved).toMatchObject([
      { class: 'fatal', error: { code: 'PUBLISH_FATAL' }, index: 1, outcome: 'failed' },
    ])
  })

  test('when a part of a page is not stored, later parts hold its keys back', async () => {
    fake.partitions = 1
    const size = 400 * 1024
    const page = ['a', 'b', 'a', 'b', 'c', 'a'].map((key) => message(key, { payload: Buffer.alloc(size) }))
    fake.answer = ({ groups }) =>
      (groups.get('t/0') ?? []).some((one) => one.id === page[0]?.id) ? protocol('INVALID_RECORD') : undefined
    const unresolved = await publisher.publish(page)
    expect(unresolved.map(({ index, outcome }) => [index, outcome])).toEqual([
      [0, 'failed'],
      [2, 'unsent'],
      [5, 'unsent'],
    ])
    expect(ids(fake.stored)).toEqual([page[1]?.id, page[3]?.id, page[4]?.id])
  })

  test('what cannot be sent because nobody is there has failed, not vanished', async () => {
    fake.answer = () => died()
    await publisher.publish(keyed(2))
    fake.connectError = Object.assign(new Error('refused'), { code: 'ECONNREFUSED', name: 'KafkaJSConnectionError' })
    const unresolved = await publisher.publish(keyed(3))
    expect(unresolved.map(({ class: c, outcome }) => [outcome, c])).toEqual([
      ['failed', 'retry'],
      ['failed', 'retry'],
      ['failed', 'retry'],
    ])
  })

  test('an error tells ids and sizes, never what a message holds', async () => {
    const secret = message('k', { headers: { token: 'hunter2' }, payload: Buffer.from('hunter2'.repeat(200_000)) })
    const [unresolved] = await publisher.publish([secret])
    const text = `${unresolved?.error.message} ${JSON.stringify(unresolved?.error)}`
    expect(text).toContain(secret.id)
    expect(text).not.toContain('hunter2')
  })

  test('sends where tracing is off, so that no instrumentation overwrites the traceparent of the event', async () => {
    const manager = new AsyncLocalStorageContextManager().enable()
    context.setGlobalContextManager(manager)
    try {
      const seen: unknown[] = []
      fake.answer = () => {
        seen.push(context.active().getValue(createContextKey('OpenTelemetry SDK Context Key SUPPRESS_TRACING')))
        return undefined
      }
      await publisher.publish(keyed(2))
      expect(seen).toEqual([true])
    } finally {
      context.disable()
    }
  })
})
