import { headers } from '@nats-io/transport-node'
import { expect, onTestFinished, test } from 'vitest'
import { delay, systemClock } from '../../src/core/clock.ts'
import { durableName } from '../../src/brokers/nats/names.ts'
import type { RecordingReader } from '../../src/testing/conformance/recording-reader.ts'
import { keyedMessages, sampleKeys } from '../../src/testing/conformance/sample-message.ts'
import { startNats } from '../../src/testing/services/index.ts'
import { describeWith, services } from '../support/services.ts'
import { expectInOrder, NatsStage, proxyTo, publishAll } from './nats-stage.ts'

const onServer = (): NatsStage => new NatsStage(services().nats as string)

/** What a reader received, the first time each, as the checks of order want it. */
function firstSightings(...readers: RecordingReader[]): { key: string | null; text: string }[] {
  const seen = new Map<string, { key: string | null; text: string }>()
  for (const reader of readers) {
    for (const { id, key, payload } of reader.received) {
      if (!seen.has(id)) seen.set(id, { key, text: String(payload) })
    }
  }
  return [...seen.values()]
}

async function commitAll(stage: NatsStage, reader: RecordingReader): Promise<void> {
  const position = reader.received.at(-1)?.position as bigint
  await reader.commit([{ partition: 0, position, topic: stage.topic }])
}

describeWith('nats', 'reading from JetStream', () => {
  test('a message is not delivered again however long its handler takes, and the owner keeps the topic meanwhile', async () => {
    const stage = onServer()
    const publisher = await stage.publisher()
    // Long enough for a machine that stands still for a second.
    const member = stage.member(2000)
    const other = stage.member(2000)
    await member.start()
    await publishAll(publisher, keyedMessages(stage.topic, ['k'], 20))
    await member.count(20)
    await other.start()
    // Three times as long as the server waits for an answer.
    await delay(systemClock, 6000)
    expect(member.received).toHaveLength(20)
    expect(other.received).toHaveLength(0)
    const { manager } = await stage.plain()
    const info = await manager.consumers.info(stage.topic, durableName(stage.group, stage.topic))
    expect(info).toMatchObject({ num_ack_pending: 20, num_redelivered: 0 })
    await commitAll(stage, member)
    await publishAll(publisher, keyedMessages(stage.topic, ['k'], 1, 20))
    await member.count(21)
    expect(member.lost).toEqual([])
  })

  test('a callback that throws ends the member loudly, and its message is not lost to the group', async () => {
    const stage = onServer()
    const publisher = await stage.publisher()
    const { group, topic } = stage
    const subscription = stage.broker().subscription({
      group,
      onAssigned() {},
      onError() {},
      onLost() {},
      onMessages() {
        throw new Error('a bug')
      },
      onRevoking: () => Promise.resolve(),
      topics: [topic],
    })
    onTestFinished(() => subscription.stop())
    await subscription.start()
    await publishAll(publisher, keyedMessages(topic, ['k'], 1))
    await expect(subscription.stopped).rejects.toThrow('a bug')
    await subscription.stop()
    const next = stage.member(30_000)
    await next.start()
    await next.count(1)
  })

  test('one member of a group reads at a time; when it leaves, the next has the rest at once and in order', async () => {
    const stage = onServer()
    const publisher = await stage.publisher()
    const keys = sampleKeys(5)
    // So long that a take-over within the test is none by time-out.
    const first = stage.member(30_000)
    const second = stage.member(30_000)
    await first.start()
    await second.start()
    await publishAll(publisher, keyedMessages(stage.topic, keys, 500))
    await first.count(500)
    expect(second.received).toHaveLength(0)
    const middle = first.received[249]?.position as bigint
    await first.commit([{ partition: 0, position: middle, topic: stage.topic }])
    await publishAll(publisher, keyedMessages(stage.topic, keys, 500, 100))
    await first.stop()
    await second.count(750)
    expect(second.received).toHaveLength(750)
    expectInOrder(firstSightings(first, second), 200)
    for (const key of keys) {
      const texts = second.textsOf(key).map(Number)
      expect(texts).toEqual(texts.toSorted((a, b) => a - b))
    }
    expect(second.received[0]?.redelivered).toBe(true)
  })

  test('when a member dies, the next hands over nothing new of a key before what the dead one had', async () => {
    const stage = onServer()
    const publisher = await stage.publisher()
    const dying = stage.broker()
    const first = stage.member(2000, {}, dying)
    await first.start()
    await publishAll(publisher, keyedMessages(stage.topic, ['a', 'b'], 40))
    await first.count(40)
    // Its connection ends and it says nothing: what it had is out until the server's time-out.
    await dying.close()
    await publishAll(publisher, keyedMessages(stage.topic, ['a', 'b'], 40, 20))
    // The pin alone would hide it: it times out no sooner than what is out. An operator may take it away.
    const { manager } = await stage.plain()
    await manager.consumers.unpin(stage.topic, durableName(stage.group, stage.topic), 'millrace')
    const second = stage.member(2000)
    const started = systemClock.monotonic()
    await second.start()
    await second.count(80)
    console.log(`taken over ${Math.round(systemClock.monotonic() - started)} ms after a death, time-out 2000 ms`)
    for (const key of ['a', 'b']) expect(second.textsOf(key)).toEqual(Array.from({ length: 40 }, (_, i) => String(i)))
  })

  test('connections that break in mid-delivery lose nothing and bring no key out of order', async () => {
    const stage = onServer()
    const publisher = await stage.publisher()
    const proxy = await proxyTo(stage.servers)
    const member = stage.member(1500, { autoCommit: true }, stage.broker({ servers: proxy.address }))
    await member.start()
    const messages = keyedMessages(stage.topic, sampleKeys(20), 20_000)
    const publishing = (async () => {
      for (let i = 0; i < messages.length; i += 500) await publishAll(publisher, messages.slice(i, i + 500))
    })()
    for (const count of [500, 3000, 9000]) {
      await member.count(count)
      proxy.cut()
    }
    await publishing
    await member.until('every message', () => new Set(member.received.map(({ id }) => id)).size === 20_000)
    expectInOrder(firstSightings(member), 1000)
    expect(member.lost.length).toBeGreaterThanOrEqual(2)
  })

  test('while paused, no more is taken from the server than the bound, and the topic stays with the paused member', async () => {
    const stage = onServer()
    const publisher = await stage.publisher()
    const member = stage.member(2000)
    const other = stage.member(2000)
    await member.start()
    await other.start()
    await publishAll(publisher, keyedMessages(stage.topic, ['k'], 1))
    await member.count(1)
    member.pause([{ partition: 0, topic: stage.topic }])
    await publishAll(publisher, keyedMessages(stage.topic, ['k'], 10_000, 1))
    await delay(systemClock, 5000)
    const { manager } = await stage.plain()
    const info = await manager.consumers.info(stage.topic, durableName(stage.group, stage.topic))
    expect(info.num_ack_pending).toBeLessThanOrEqual(1 + 1024)
    expect(member.received).toHaveLength(1)
    member.resume([{ partition: 0, topic: stage.topic }])
    while (member.received.length < 10_001) {
      const before = member.received.length
      await commitAll(stage, member)
      if (member.received.length === before) await member.count(before + 1)
    }
    expectInOrder(firstSightings(member), 10_001)
    expect([member.received.length, other.received.length, member.lost.length]).toEqual([10_001, 0, 0])
  })

  test('messages of other producers have the id they came with in their stream, else their place and time there', async () => {
    const stage = onServer()
    await stage.publisher()
    const { nc } = await stage.plain()
    const own = headers()
    own.set('Nats-Msg-Id', 'theirs')
    own.set('tenant', 'acme')
    nc.publish(stage.topic, 'with id', { headers: own })
    nc.publish(stage.topic, 'bare')
    // Written by hand: a name that no header may have, which the client of the reader refuses to parse.
    const broken = headers()
    Object.assign(broken, { encode: () => Buffer.from('NATS/1.0\r\nbad name: x\r\n\r\n') })
    nc.publish(stage.topic, 'broken', { headers: broken })
    nc.publish(stage.topic, '')
    const member = stage.member(6000)
    await member.start()
    await member.count(4)
    const placed = (seq: number): unknown => expect.stringMatching(new RegExp(`^${stage.topic}/${seq}/\\d{19}$`))
    expect(member.received).toMatchObject([
      { headers: { tenant: 'acme' }, id: `${stage.topic}/theirs`, key: null, timeMs: 0, type: '' },
      { headers: {}, id: placed(2), key: null },
      { id: placed(3) },
      { id: placed(4), payload: Buffer.alloc(0) },
    ])
    expect(member.received.map(({ payload }) => String(payload))).toEqual(['with id', 'bare', 'broken', ''])
  })

  test('a group that starts at the latest misses what was before, and nothing after its start', async () => {
    const stage = onServer()
    const publisher = await stage.publisher()
    await publishAll(publisher, keyedMessages(stage.topic, ['k'], 5))
    const member = stage.member(6000, { startFrom: 'latest' })
    await member.start()
    await publishAll(publisher, keyedMessages(stage.topic, ['k'], 5, 5))
    await member.count(5)
    expect(member.textsOf('k')).toEqual(['5', '6', '7', '8', '9'])
  })

  test('a durable consumer that somebody deletes is made again, and the group begins anew', async () => {
    const stage = onServer()
    const publisher = await stage.publisher()
    const member = stage.member(6000)
    await member.start()
    await publishAll(publisher, keyedMessages(stage.topic, ['k'], 5))
    await member.count(5)
    const { manager } = await stage.plain()
    await manager.consumers.delete(stage.topic, durableName(stage.group, stage.topic))
    await member.count(10)
    expect(member.textsOf('k')).toEqual(['0', '1', '2', '3', '4', '0', '1', '2', '3', '4'])
    expect([member.lost.length, member.assigned.length]).toEqual([1, 2])
    await commitAll(stage, member)
  })

  test('a topic without a stream is refused at the start, with the command that makes it', async () => {
    const stage = onServer()
    await expect(stage.member(6000).start()).rejects.toThrow(`nats stream add ${stage.topic} --subjects ${stage.topic}`)
  })
})

describeWith('private nats', 'reading from a server that fails', () => {
  test('the server is killed while a member reads: nothing is lost, and each key stays in order', async () => {
    const server = await startNats()
    onTestFinished(() => server.dispose())
    const stage = new NatsStage(server.address)
    const publisher = await stage.publisher({ timeoutMs: 2000 })
    const member = stage.member(2000, { autoCommit: true })
    await member.start()
    const messages = keyedMessages(stage.topic, sampleKeys(20), 20_000)
    const publishing = (async () => {
      for (let i = 0; i < messages.length; i += 500) await publishAll(publisher, messages.slice(i, i + 500))
    })()
    for (const count of [2000, 8000]) {
      await member.count(count)
      await server.kill()
      await server.start()
    }
    await publishing
    await member.until('every message', () => new Set(member.received.map(({ id }) => id)).size === 20_000)
    expectInOrder(firstSightings(member), 1000)
    expect(member.lost.length).toBeGreaterThanOrEqual(2)
    expect(member.assigned.length).toBe(member.lost.length + 1)
  })
})
