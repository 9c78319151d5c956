import * as module from '@platformatic/kafka'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { ProduceRecord } from '../../src/brokers/kafka/produce-record.ts'
import { ProtocolRefusal } from '../../src/brokers/kafka/platformatic/error-class.ts'
import { settingsOf } from '../../src/brokers/kafka/platformatic/options.ts'
import { ProducerSession } from '../../src/brokers/kafka/platformatic/producer-session.ts'
import { PlatformaticPublisher } from '../../src/brokers/kafka/platformatic/publisher.ts'
import { RecordGroup } from '../../src/brokers/kafka/platformatic/record-group.ts'
import type { OutgoingMessage } from '../../src/core/message.ts'
import { FakeCluster } from './platformatic-fake-cluster.ts'

let count = 0
function message(key: string): OutgoingMessage {
  const id = `id-${++count}`
  return { headers: {}, id, key, payload: Buffer.from('x'), seq: '1', timeMs: 1, topic: 't', type: 'x' }
}
const page = (size: number): OutgoingMessage[] => Array.from({ length: size }, (_, i) => message(`k${i}`))
const ids = (messages: readonly { readonly id: string }[]): string[] => messages.map((one) => one.id)
const once = <T>(value: T): (() => T | undefined) => {
  let left = 1
  return () => (left-- > 0 ? value : undefined)
}

describe('what may be stored is never told as failed, and its numbers are given to nothing else', () => {
  let cluster: FakeCluster
  let publisher: PlatformaticPublisher

  beforeEach(async () => {
    cluster = new FakeCluster()
    cluster.partitions = 1
    publisher = new PlatformaticPublisher(cluster.connector, settingsOf({ brokers: 'b:1' }), { timeoutMs: 2000 })
    await publisher.start()
  })
  afterEach(() => publisher.close())

  test('a leader that is deposed after it appended', async () => {
    cluster.faults.refuseStored = () => 'NOT_LEADER_OR_FOLLOWER'
    const first = page(5)
    const unresolved = await publisher.publish(first)
    expect(unresolved.map((one) => `${one.outcome} ${one.class}`)).toEqual(first.map(() => 'unknown retry'))
    cluster.faults = {}
    // As many others: under the same numbers they would be taken for the first, and dropped.
    const second = page(5)
    expect(await publisher.publish(second)).toEqual([])
    expect(ids(cluster.stored)).toEqual(ids([...first, ...second]))
  })

  test('a deposed leader whose successor has what it appended costs no duplicate', async () => {
    cluster.faults.refuseStored = once('NOT_LEADER_OR_FOLLOWER')
    const first = page(5)
    expect(await publisher.publish(first)).toEqual([])
    expect(ids(cluster.stored)).toEqual(ids(first))
    expect(cluster.producerIds).toBe(1n)
  })

  test('numbers that the broker knows from something else do not make a message stored', async () => {
    cluster.faults.refuse = ({ producerId }) => (producerId === 1n ? 'DUPLICATE_SEQUENCE_NUMBER' : undefined)
    const first = page(5)
    expect(await publisher.publish(first)).toEqual([])
    expect(ids(cluster.stored)).toEqual(ids(first))
    expect(cluster.producerIds).toBe(2n)
  })

  test('but those of an attempt whose answer was lost do', async () => {
    cluster.faults.request = once('lose answer')
    cluster.faults.refuse = () => (cluster.requests.length > 1 ? 'DUPLICATE_SEQUENCE_NUMBER' : undefined)
    const first = page(5)
    expect(await publisher.publish(first)).toEqual([])
    expect(ids(cluster.stored)).toEqual(ids(first))
  })

  test('an answer that cannot be read says nothing of the messages', async () => {
    cluster.faults.request = () => 'garble answer'
    const first = page(3)
    const unresolved = await publisher.publish(first)
    expect(unresolved.map((one) => `${one.outcome} ${one.class}`)).toEqual(first.map(() => 'unknown retry'))
    expect(ids(cluster.stored)).toEqual(ids(first))
  })

  test('a connection on which we are not let in any more says nothing of what was sent on it', async () => {
    cluster.faults.request = () => 'lock out'
    const first = page(3)
    const unresolved = await publisher.publish(first)
    expect(unresolved.map((one) => `${one.outcome} ${one.class}`)).toEqual(first.map(() => 'unknown fatal'))
    expect(ids(cluster.stored)).toEqual(ids(first))
  })

  test('a message that is refused for ever after a lost answer is parked only when that is sure', async () => {
    cluster.faults.request = once('lose answer')
    cluster.faults.refuse = () => (cluster.requests.length > 1 ? 'INVALID_RECORD' : undefined)
    const first = page(1)
    expect(await publisher.publish(first)).toMatchObject([{ class: 'retry', outcome: 'unknown' }])
    expect(await publisher.publish(page(1))).toMatchObject([{ class: 'poison', outcome: 'failed' }])
  })

  test('also when it is found by halving what may be stored as a whole', async () => {
    cluster.faults.request = once('lose answer')
    cluster.faults.refuse = () => (cluster.requests.length > 1 ? 'INVALID_RECORD' : undefined)
    const first = page(4)
    const unresolved = await publisher.publish(first)
    expect(unresolved).toHaveLength(4)
    expect(unresolved.filter((one) => one.class === 'poison')).toEqual([])
    expect(unresolved[0]).toMatchObject({ index: 0, outcome: 'unknown' })
  })

  test('halves have a new producer when the whole may be stored under the numbers of the old one', async () => {
    cluster.faults.request = once('lose answer')
    cluster.faults.refuse = ({ records }) =>
      cluster.requests.length > 1 && records.length === 4 ? 'MESSAGE_TOO_LARGE' : undefined
    const first = page(4)
    expect(await publisher.publish(first)).toEqual([])
    expect(cluster.requests.map(([batch]) => [batch?.producerId, batch?.records.length])).toEqual([
      [1n, 4],
      [1n, 4],
      [2n, 2],
      [2n, 2],
    ])
  })

  test('what may be stored is asked for as long as there is time, not only as long as a refusal may pass', async () => {
    await publisher.close()
    publisher = new PlatformaticPublisher(cluster.connector, settingsOf({ brokers: 'b:1' }), { timeoutMs: 20_000 })
    await publisher.start()
    const started = performance.now()
    cluster.faults.request = () => (performance.now() - started < 1200 ? 'lose answer' : undefined)
    const first = page(3)
    expect(await publisher.publish(first)).toEqual([])
    expect(ids(cluster.stored)).toEqual(ids(first))
  })

  test('a partition that an answer leaves out is sent again', async () => {
    cluster.partitions = 4
    let first = true
    cluster.faults.omit = ({ partition }) => first && partition === cluster.requests[0]?.at(-1)?.partition
    cluster.faults.request = () => {
      first = cluster.requests.length === 1
      return undefined
    }
    const messages = page(20)
    expect(await publisher.publish(messages)).toEqual([])
    expect(ids(cluster.stored).toSorted()).toEqual(ids(messages).toSorted())
    expect(cluster.requests.length).toBe(2)
  })

  test('a new producer begins with the next publish, also where only one message stayed unknown', async () => {
    cluster.faults.refuseStored = ({ records }) =>
      records.some((one) => one.id === first[0]?.id) ? 'REQUEST_TIMED_OUT' : undefined
    const first = page(1)
    expect(await publisher.publish(first)).toMatchObject([{ outcome: 'unknown' }])
    expect(await publisher.publish(page(1))).toEqual([])
    expect(cluster.producerIds).toBe(2n)
  })
})

describe('a producer session', () => {
  interface Wire {
    answer: () => Promise<object>
    link: () => Promise<object>
    requests: number
  }

  async function open(): Promise<{ session: ProducerSession; wire: Wire }> {
    const stored = { responses: [{ name: 't', partitionResponses: [{ errorCode: 0, errorMessage: null, index: 0 }] }] }
    const wire: Wire = {
      answer: () => Promise.resolve(stored),
      link: () => Promise.resolve(link),
      requests: 0,
    }
    const link = {
      produce: () => {
        wire.requests++
        return wire.answer()
      },
      request: () => Promise.resolve({ errorCode: 0, producerEpoch: 0, producerId: 7n }),
    }
    const client = {
      any: () => Promise.resolve(link),
      broker: () => wire.link(),
      kill: () => {},
      killed: false,
      module,
      refusal: (code: number) => new ProtocolRefusal(String(module.protocolErrorsCodesById[code as 0])),
    }
    const connector = { open: () => Promise.resolve(client), release: () => {} } as never
    return { session: await ProducerSession.open(connector, 1000, 1000), wire }
  }
  const group = (size: number): RecordGroup =>
    new RecordGroup(
      't',
      0,
      page(size).map((one, i) => new ProduceRecord(i, one, 0)),
    )

  test('sequence numbers begin anew after the greatest, as the broker counts them', async () => {
    const { session } = await open()
    // As many records as nobody sends in a test: of these only their number counts.
    const most = group(1)
    most.encoded = Buffer.alloc(61)
    most.records = { length: 0x7fffffff - 1 } as never
    const sent: number[] = []
    for (const one of [most, group(1), group(3), group(1)]) {
      await session.send(1, [one], 1000)
      if (one !== most) sent.push((one.encoded as Buffer).readInt32BE(53))
    }
    expect(sent).toEqual([0x7ffffffe, 0x7fffffff, 2])
  })

  test('what no connection was made for in time is never sent, and failed', async () => {
    const { session, wire } = await open()
    const late = Promise.withResolvers<object>()
    const { link } = wire
    wire.link = () => late.promise
    const one = group(1)
    // Long enough that a busy machine sends it at all.
    const [result] = await session.send(1, [one], 500)
    expect(result?.verdict).toMatchObject({ class: 'retry', refused: true })
    expect(one.indefinite).toBe(false)
    late.resolve(await link())
    await new Promise((resolve) => setImmediate(resolve))
    expect(wire.requests).toBe(0)
    expect(one.attempts).toBe(0)
  })

  test('an answer that comes too late changes nothing any more', async () => {
    const { session, wire } = await open()
    const late = Promise.withResolvers<object>()
    const { answer } = wire
    wire.answer = () => late.promise
    const one = group(2)
    // Long enough that a busy machine sends it at all.
    const [result] = await session.send(1, [one], 500)
    expect(result?.verdict).toMatchObject({ class: 'retry', refused: false })
    late.resolve(await answer())
    await new Promise((resolve) => setImmediate(resolve))
    expect(one.indefinite).toBe(true)
  })
})
