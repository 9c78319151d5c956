import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { settingsOf } from '../../src/brokers/kafka/platformatic/options.ts'
import { PlatformaticPublisher } from '../../src/brokers/kafka/platformatic/publisher.ts'
import { newId } from '../../src/core/ids.ts'
import type { OutgoingMessage } from '../../src/core/message.ts'
import { seeded } from './flow-random.ts'
import { FakeCluster } from './platformatic-fake-cluster.ts'

let seq = 0
function message(key: string | null, fields: Partial<OutgoingMessage> = {}): OutgoingMessage {
  return {
    headers: {},
    id: newId(),
    key,
    payload: Buffer.from('x'),
    seq: String(++seq),
    timeMs: 1_790_000_000_000,
    topic: 't',
    type: 'test',
    ...fields,
  }
}
const keyed = (count: number): OutgoingMessage[] => Array.from({ length: count }, (_, i) => message(`k${i % 20}`))
const ids = (messages: readonly { readonly id: string }[]): string[] => messages.map((one) => one.id)

describe('the platformatic publisher', () => {
  let cluster: FakeCluster
  let publisher: PlatformaticPublisher

  async function make(options: { timeoutMs?: number; unknownTopicMs?: number } = {}): Promise<void> {
    const { timeoutMs = 10_000, unknownTopicMs = 60_000 } = options
    const settings = settingsOf({ brokers: 'b:1', unknownTopicMs })
    publisher = new PlatformaticPublisher(cluster.connector, settings, { timeoutMs })
    await publisher.start()
  }
  beforeEach(async () => {
    cluster = new FakeCluster()
    await make()
  })
  afterEach(() => publisher.close())
  /** For what takes all the time there is. */
  const hurry = async (): Promise<void> => {
    await publisher.close()
    cluster = new FakeCluster()
    await make({ timeoutMs: 600 })
  }

  test('a page is one request, and the next one goes on with its sequence numbers', async () => {
    const pages = [keyed(100), keyed(100)]
    for (const page of pages) expect(await publisher.publish(page)).toEqual([])
    expect(cluster.requests).toHaveLength(2)
    expect(ids(cluster.stored).toSorted()).toEqual(ids(pages.flat()).toSorted())
    expect(cluster.producerIds).toBe(1n)
  })

  test('a request whose answer is lost is sent again as it was, and stored once', async () => {
    let losses = 2
    cluster.faults.request = () => (losses-- > 0 ? 'lose answer' : undefined)
    const page = keyed(50)
    expect(await publisher.publish(page)).toEqual([])
    expect(ids(cluster.stored).toSorted()).toEqual(ids(page).toSorted())
    expect(cluster.producerIds, 'one producer').toBe(1n)
  })

  test('what has no answer until the time is up is unknown, and a new producer sends what comes after', async () => {
    await hurry()
    cluster.faults.request = () => 'lose answer'
    const page = keyed(10)
    const unresolved = await publisher.publish(page)
    expect(unresolved.map((one) => [one.index, one.outcome, one.class])).toEqual(
      page.map((_, i) => [i, 'unknown', 'retry']),
    )
    cluster.faults = {}
    expect(await publisher.publish(page)).toEqual([])
    expect(cluster.producerIds).toBe(2n)
    const fresh = keyed(10)
    expect(await publisher.publish(fresh)).toEqual([])
    expect(ids(cluster.stored).slice(-10).toSorted()).toEqual(ids(fresh).toSorted())
  })

  test('a request that hangs is given up in time', async () => {
    await hurry()
    cluster.faults.request = () => 'hang'
    const started = performance.now()
    const unresolved = await publisher.publish(keyed(10))
    expect(performance.now() - started).toBeLessThan(10_000)
    expect(new Set(unresolved.map((one) => one.outcome))).toEqual(new Set(['unknown']))
  })

  test('one sick partition keeps nobody else waiting, and what was refused failed', async () => {
    await hurry()
    cluster.faults.refuse = ({ partition }) => (partition === 2 ? 'NOT_ENOUGH_REPLICAS' : undefined)
    const page = keyed(100)
    const unresolved = await publisher.publish(page)
    const failed = unresolved.filter((one) => one.outcome === 'failed')
    expect(failed).toHaveLength(unresolved.length)
    expect(ids(cluster.stored).length + unresolved.length).toBe(100)
    expect(cluster.stored.every((one) => one.partition !== 2)).toBe(true)
    cluster.faults = {}
    expect(await publisher.publish(unresolved.map((one) => page[one.index] as OutgoingMessage))).toEqual([])
    expect(cluster.producerIds, 'a refusal uses no numbers up').toBe(1n)
    expect(ids(cluster.stored).toSorted()).toEqual(ids(page).toSorted())
  })

  test('a record the broker will not have is found; its key is held, everybody else is stored in order', async () => {
    const page = keyed(100)
    const bad = page[37] as OutgoingMessage
    cluster.faults.refuse = ({ records }) => (records.some((one) => one.id === bad.id) ? 'INVALID_RECORD' : undefined)
    const unresolved = await publisher.publish(page)
    expect(unresolved[0]).toMatchObject({ class: 'poison', index: 37, outcome: 'failed' })
    const held = page.flatMap((one, i) => (one.key === bad.key && i > 37 ? [i] : []))
    expect(unresolved.slice(1).map((one) => [one.index, one.outcome])).toEqual(held.map((i) => [i, 'unsent']))
    const stored = Map.groupBy(cluster.stored, (one) => one.key)
    for (const [key, own] of Map.groupBy(page, (one) => one.key)) {
      const expected = key === bad.key ? own.filter((one) => page.indexOf(one) < 37) : own
      expect(ids(stored.get(key ?? '') ?? []), String(key)).toEqual(ids(expected))
    }
  })

  test('a broken sequence is mended by a new producer id within the publish', async () => {
    let broken = true
    cluster.faults.refuse = ({ producerId }) =>
      broken && producerId === 1n ? 'OUT_OF_ORDER_SEQUENCE_NUMBER' : undefined
    const page = keyed(10)
    expect(await publisher.publish(page)).toEqual([])
    broken = false
    expect(cluster.producerIds).toBe(2n)
    expect(ids(cluster.stored).toSorted()).toEqual(ids(page).toSorted())
  })

  test('of a key that is used in two topics nothing is stored in one while the other refuses what comes before', async () => {
    await hurry()
    cluster.faults.refuse = ({ topic }) => (topic === 'sick' ? 'NOT_ENOUGH_REPLICAS' : undefined)
    const sick = { topic: 'sick' }
    const page = [message('a'), message('b', sick), message('b'), message('c'), message('a', sick), message('a')]
    const unresolved = await publisher.publish(page)
    expect(unresolved.map(({ index, outcome }) => [index, outcome])).toEqual([
      [1, 'failed'],
      [2, 'unsent'],
      [4, 'failed'],
      [5, 'unsent'],
    ])
    expect(new Set(ids(cluster.stored))).toEqual(new Set([page[0]?.id, page[3]?.id]))
  })

  test('a missing topic is retried while it may be about to be made, then poison; other topics go on', async () => {
    cluster.missing.add('none')
    const page = [message('a'), message('b', { topic: 'none' }), message('b'), message('c')]
    const first = await publisher.publish(page)
    expect(first.map(({ class: c, index, outcome }) => [index, outcome, c])).toEqual([
      [1, 'failed', 'retry'],
      [2, 'unsent', 'retry'],
    ])
    expect(first[0]?.error.message).toContain('does not exist')
    await publisher.close()
    await make({ unknownTopicMs: 0 })
    expect(await publisher.publish(page.slice(1, 2))).toMatchObject([{ class: 'poison', outcome: 'failed' }])
  })

  test('a topic nobody may write to is fatal for its messages only', async () => {
    cluster.faults.refuse = ({ topic }) => (topic === 'secret' ? 'TOPIC_AUTHORIZATION_FAILED' : undefined)
    const unresolved = await publisher.publish([message('a'), message('b', { topic: 'secret' })])
    expect(unresolved).toMatchObject([
      { class: 'fatal', error: { code: 'PUBLISH_FATAL' }, index: 1, outcome: 'failed' },
    ])
  })

  test('nothing is sent after a batch of which nobody knows, for its sequence numbers may be used up', async () => {
    cluster.partitions = 1
    const page = ['a', 'b'].map((key) => message(key, { payload: Buffer.alloc(600 * 1024) }))
    // Stored, but the answer is lost; and when it is sent again, we may not write any more.
    cluster.faults.request = () => (cluster.requests.length === 1 ? 'lose answer' : undefined)
    cluster.faults.refuse = () => (cluster.requests.length > 1 ? 'TOPIC_AUTHORIZATION_FAILED' : undefined)
    const unresolved = await publisher.publish(page)
    expect(unresolved).toMatchObject([
      { class: 'fatal', index: 0, outcome: 'unknown' },
      { class: 'retry', index: 1, outcome: 'failed' },
    ])
    expect(cluster.requests).toHaveLength(2)
    cluster.faults = {}
    expect(await publisher.publish(page.slice(1))).toEqual([])
    expect(cluster.producerIds).toBe(2n)
    expect(ids(cluster.stored)).toEqual(ids(page))
  })

  test('when nobody answers everything failed, for nothing was sent', async () => {
    await hurry()
    cluster.unreachable = true
    const unresolved = await publisher.publish(keyed(5))
    expect(new Set(unresolved.map((one) => `${one.outcome} ${one.class}`))).toEqual(new Set(['failed retry']))
    cluster.unreachable = false
    expect(await publisher.publish(keyed(5))).toEqual([])
  })

  test('whatever fails: what is told as stored is there, in the order of its key, and nothing is lost in silence', async () => {
    const refusals = [
      'NOT_ENOUGH_REPLICAS',
      'NOT_LEADER_OR_FOLLOWER',
      'REQUEST_TIMED_OUT',
      'OUT_OF_ORDER_SEQUENCE_NUMBER',
    ]
    for (let seed = 1; seed <= 12; seed++) {
      cluster = new FakeCluster()
      await make({ timeoutMs: 150 })
      const draw = seeded(seed)
      cluster.faults = {
        refuse: () => (draw.chance(0.1) ? refusals[draw.below(refusals.length)] : undefined),
        request: () => (draw.chance(0.25) ? (['lose answer', 'lose request'] as const)[draw.below(2)] : undefined),
      }
      const sent: OutgoingMessage[] = []
      for (let page = 0; page < 6; page++) {
        const batch = keyed(30)
        sent.push(...batch)
        // As the relay does: what is not stored is sent again, in order, before anything new.
        for (let left = batch; left.length > 0;) {
          const unresolved = await publisher.publish(left)
          const open = new Set(unresolved.map((one) => left[one.index]?.id))
          const there = new Set(ids(cluster.stored))
          for (const one of left) if (!open.has(one.id)) expect(there.has(one.id), `seed ${seed}`).toBe(true)
          left = unresolved.map((one) => left[one.index] as OutgoingMessage)
        }
      }
      const first = [...new Set(ids(cluster.stored))]
      expect(first).toHaveLength(sent.length)
      const place = new Map(first.map((id, i) => [id, i]))
      for (const [key, own] of Map.groupBy(sent, (one) => one.key)) {
        const places = own.map((one) => place.get(one.id) ?? -1)
        expect(places, `seed ${seed}, ${key}`).toEqual(places.toSorted((a, b) => a - b))
      }
      await publisher.close()
    }
  })
})
