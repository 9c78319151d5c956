import { expect, test } from 'vitest'
import type { Publisher } from '../../src/brokers/broker.ts'
import { systemClock } from '../../src/core/clock.ts'
import { keyedMessages, sampleKeys, sampleMessage } from '../../src/testing/conformance/sample-message.ts'
import { describeWith, services } from '../support/services.ts'
import { expectInOrder, NatsStage, proxyTo, publishAll } from './nats-stage.ts'

describeWith('nats', 'chains of one key on JetStream', () => {
  test('a page of one key is in flight at once, each message naming the one before it', async () => {
    const stage = new NatsStage(services().nats as string)
    const publisher = await stage.publisher()
    await untilChained(stage, publisher)
    const batch = keyedMessages(stage.topic, ['k'], 500)
    expect(await publisher.publish(batch)).toEqual([])
    const stored = await stage.stored()
    expectInOrder(
      stored.filter(({ key }) => key === 'k'),
      500,
    )
    const { manager } = await stage.plain()
    const last = await manager.streams.getMessage(stage.topic, { last_by_subj: stage.topic })
    expect(last?.header.get('Nats-Expected-Last-Msg-Id')).toBe(batch.at(-2)?.id)
  })

  test('what would fit behind a message that did not is not stored: the server holds the key', async () => {
    const stage = new NatsStage(services().nats as string)
    const publisher = await stage.publisher()
    await untilChained(stage, publisher)
    const { manager } = await stage.plain()
    const { state } = await manager.streams.info(stage.topic)
    await manager.streams.update(stage.topic, { discard: 'new', max_bytes: state.bytes + 3000 })
    const payloads = [10, 5000, 10, 10, 10]
    const batch = payloads.map((size, i) =>
      sampleMessage(stage.topic, { key: 'k', payload: Buffer.from(String(i).padStart(size, '0')) }),
    )
    const unresolved = await publisher.publish(batch)
    expect(unresolved.map(({ class: errorClass, index, outcome }) => `${index} ${outcome} ${errorClass}`)).toEqual([
      '1 failed retry',
      ...[2, 3, 4].map((index) => `${index} unsent retry`),
    ])
    await manager.streams.update(stage.topic, { max_bytes: -1 })
    expect(await publisher.publish(batch.slice(1))).toEqual([])
    const texts = (await stage.stored()).filter(({ key }) => key === 'k').map(({ text }) => Number(text))
    expect(texts).toEqual([0, 1, 2, 3, 4])
  })

  test('a message too large for the stream parks its key from there on, in the middle of a chain, too', async () => {
    const stage = new NatsStage(services().nats as string)
    const publisher = await stage.publisher()
    await untilChained(stage, publisher)
    const { manager } = await stage.plain()
    await manager.streams.update(stage.topic, { max_msg_size: 1000 })
    const batch = [10, 10, 2000, 10, 10].map((size) =>
      sampleMessage(stage.topic, { key: 'k', payload: Buffer.alloc(size) }),
    )
    const unresolved = await publisher.publish(batch)
    expect(unresolved.map(({ class: errorClass, index, outcome }) => `${index} ${outcome} ${errorClass}`)).toEqual([
      '2 failed poison',
      '3 unsent poison',
      '4 unsent poison',
    ])
    const ids = (await stage.stored()).filter(({ key }) => key === 'k').map(({ id }) => id)
    expect(ids).toEqual(batch.slice(0, 2).map(({ id }) => id))
  })

  test('three relays and a stranger fill one stream at once: every key is once and in order', async () => {
    const stage = new NatsStage(services().nats as string)
    const publishers = await Promise.all([stage.publisher(), stage.publisher(), stage.publisher()])
    await untilChained(stage, ...publishers)
    const { nc } = await stage.plain()
    let filling = true
    const stranger = (async () => {
      while (filling) {
        for (let i = 0; i < 20; i++) nc.publish(stage.topic, 'stranger')
        await nc.flush()
      }
    })()
    await Promise.all(
      publishers.map(async (publisher, at) => {
        const messages = keyedMessages(
          stage.topic,
          sampleKeys(5).map((key) => `${at}-${key}`),
          10_000,
        )
        for (let i = 0; i < messages.length; i += 500) await publishAll(publisher, messages.slice(i, i + 500))
      }),
    )
    filling = false
    await stranger
    const ours = (await stage.stored()).filter(({ key }) => /^\d-/.test(key))
    expect(ours).toHaveLength(30_000)
    expectInOrder(ours, 2000)
  })

  test('e1 is unknown and e2 waits: a chain that is cut off is sent again, and the order on the stream holds', async () => {
    const stage = new NatsStage(services().nats as string)
    const proxy = await proxyTo(stage.servers)
    const publisher = await stage.publisher({ timeoutMs: 400 }, { servers: proxy.address })
    await untilChained(stage, publisher)
    const messages = keyedMessages(stage.topic, ['a', 'b', 'c'], 3000)
    for (let page = 0; page < 10; page++) {
      const batch = messages.slice(page * 300, page * 300 + 300)
      if (page % 3 === 1) proxy.hold()
      const publishing = publisher.publish(batch)
      if (page % 3 === 2) setImmediate(() => proxy.cut())
      const unresolved = await publishing
      proxy.release()
      if (page % 3 === 1) expect(unresolved[0]).toMatchObject({ index: 0, outcome: 'unknown' })
      await publishAll(
        publisher,
        unresolved.map(({ index }) => batch[index] as (typeof batch)[number]),
      )
    }
    const ours = (await stage.stored()).filter(({ key }) => key.length === 1)
    expect(ours).toHaveLength(3000)
    expectInOrder(ours, 1000)
  })
})

/** The publishers learn of the stream in the background: publishes until what is stored names the one before it. */
async function untilChained(stage: NatsStage, ...publishers: readonly Publisher[]): Promise<void> {
  const { manager } = await stage.plain()
  for (const publisher of publishers) {
    for (;;) {
      await publishAll(publisher, keyedMessages(stage.topic, ['warm-up'], 2))
      const last = await manager.streams.getMessage(stage.topic, { last_by_subj: stage.topic })
      if (last?.header.get('Nats-Expected-Last-Msg-Id')) break
      await new Promise((resolve) => systemClock.setTimer(() => resolve(undefined), 10))
    }
  }
}
