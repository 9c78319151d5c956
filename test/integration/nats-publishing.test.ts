import { randomUUID } from 'node:crypto'
import { expect, onTestFinished, test } from 'vitest'
import type { LateRetry } from '../../src/brokers/broker.ts'
import { MISSING_GRACE_MS } from '../../src/brokers/nats/error-class.ts'
import { systemClock } from '../../src/core/clock.ts'
import { keyedMessages, sampleKeys, sampleMessage } from '../../src/testing/conformance/sample-message.ts'
import { startNats } from '../../src/testing/services/index.ts'
import { describeWith, services } from '../support/services.ts'
import { expectInOrder, NatsStage, proxyTo, publishAll } from './nats-stage.ts'

describeWith('nats', 'publishing to JetStream', () => {
  test.each([10, 1000])(
    '100,000 messages over %i keys are stored once each, in the order of their key',
    async (keys) => {
      const stage = new NatsStage(services().nats as string)
      const publisher = await stage.publisher()
      const messages = keyedMessages(stage.topic, sampleKeys(keys), 100_000)
      for (let i = 0; i < messages.length; i += 5000) {
        expect(await publisher.publish(messages.slice(i, i + 5000))).toEqual([])
      }
      const stored = await stage.stored()
      expect(stored).toHaveLength(100_000)
      expectInOrder(stored, 100_000 / keys)
    },
    120_000,
  )

  test('a batch that is published twice within the duplicate window is stored once, and both times counts as stored', async () => {
    const stage = new NatsStage(services().nats as string)
    const publisher = await stage.publisher()
    const batch = keyedMessages(stage.topic, ['a', 'b'], 100)
    expect(await publisher.publish(batch)).toEqual([])
    expect(await publisher.publish(batch)).toEqual([])
    expectInOrder(await stage.stored(), 50)
  })

  test('a subject that no stream captures is retried at first, and poison once the server has said so for a while; the error says how to make the stream', async () => {
    const stage = new NatsStage(services().nats as string)
    const publisher = await stage.publisher()
    const missing = `missing.${randomUUID()}`
    const batch = keyedMessages(missing, ['k'], 2)
    const started = systemClock.monotonic()
    let [first, second] = await publisher.publish(batch)
    expect(first).toMatchObject({ class: 'retry', index: 0, outcome: 'failed' })
    expect(first?.error.message).toContain(`--subjects ${missing}`)
    expect(second).toMatchObject({ class: 'retry', index: 1, outcome: 'unsent' })
    while (first?.class === 'retry') {
      await pause(50)
      ;[first, second] = await publisher.publish(batch)
    }
    expect(systemClock.monotonic() - started).toBeGreaterThan(MISSING_GRACE_MS)
    expect(first).toMatchObject({ class: 'poison', error: { code: 'MESSAGE_REJECTED' }, index: 0, outcome: 'failed' })
    expect(first?.error.message).toContain(`--subjects ${missing}`)
    expect(second).toMatchObject({ class: 'poison', index: 1, outcome: 'unsent' })
    const { manager } = await stage.plain()
    const name = missing.replace('.', '-')
    await manager.streams.add({ name, subjects: [missing] })
    onTestFinished(async () => void (await manager.streams.delete(name)))
    expect(await publisher.publish(batch)).toEqual([])
  })

  test('a stream that is made while its messages are retried gets them, and none was poison', async () => {
    const stage = new NatsStage(services().nats as string)
    const broker = stage.broker()
    const publisher = broker.publisher()
    await publisher.start()
    onTestFinished(() => publisher.close())
    const batch = keyedMessages(stage.topic, ['k'], 3)
    expect((await publisher.publish(batch))[0]).toMatchObject({ class: 'retry', outcome: 'failed' })
    await broker.admin.createTopic(stage.topic)
    await publishAll(publisher, batch)
    expectInOrder(await stage.stored(), 3)
  })

  test.each(['ack', 'fsync'] as const)(
    "sent again past the stream's duplicate window is told once, with the ids; within it nothing is told (durability %s)",
    async (durability) => {
      const stage = new NatsStage(services().nats as string)
      const proxy = await proxyTo(stage.servers)
      const told: LateRetry[] = []
      const late = stage.broker({ durability, servers: proxy.address, stream: { duplicateWindowMs: 900 } })
      await late.admin.createTopic(stage.topic)
      const publisher = late.publisher({ onLateRetry: (retry) => told.push(retry), timeoutMs: 200 })
      await publisher.start()
      onTestFinished(() => publisher.close())
      // What the stream says counts, and it is asked in the background.
      await publishAll(publisher, keyedMessages(stage.topic, ['k'], 40))
      // On a machine that stands still these may have been late, too.
      told.length = 0
      const batch = keyedMessages(stage.topic, sampleKeys(20), 20, 100)
      proxy.hold()
      const started = systemClock.monotonic()
      expect(await publisher.publish(batch)).toHaveLength(20)
      expect(await publisher.publish(batch)).toHaveLength(20)
      const untold = told.length
      if (systemClock.monotonic() - started < 900) expect(untold).toBe(0)
      while (systemClock.monotonic() - started <= 1000) await pause(50)
      expect(await publisher.publish([...batch, sampleMessage(stage.topic)])).toHaveLength(21)
      proxy.release()
      await publishAll(publisher, batch)
      expect(told).toHaveLength(1)
      expect(told[0]).toMatchObject({ count: 20, ids: batch.map(({ id }) => id), topic: stage.topic, windowMs: 900 })
      expect(told[0]?.oldestMs).toBeGreaterThan(900)
    },
    120_000,
  )

  test('an unwell topic does not hold the others of its batch', async () => {
    const stage = new NatsStage(services().nats as string)
    const publisher = await stage.publisher()
    const missing = keyedMessages(`missing-${randomUUID()}`, sampleKeys(5), 50)
    const fine = keyedMessages(stage.topic, ['fine'], 50)
    const unresolved = await publisher.publish(missing.flatMap((message, i) => [message, fine[i] ?? message]))
    expect(unresolved.map(({ index }) => index)).toEqual(missing.map((_, i) => i * 2))
    expectInOrder(await stage.stored(), 50)
  })

  test('a full stream is retried; with room again, what was held follows in order', async () => {
    const stage = new NatsStage(services().nats as string)
    const publisher = await stage.publisher()
    const { manager } = await stage.plain()
    await manager.streams.update(stage.topic, { discard: 'new', max_msgs: 3 })
    const batch = keyedMessages(stage.topic, ['k'], 6)
    const unresolved = await publisher.publish(batch)
    expect(unresolved.map(({ class: errorClass, index, outcome }) => `${index} ${outcome} ${errorClass}`)).toEqual([
      '3 failed retry',
      '4 unsent retry',
      '5 unsent retry',
    ])
    await manager.streams.update(stage.topic, { max_msgs: -1 })
    expect(await publisher.publish(batch.slice(3))).toEqual([])
    expectInOrder(await stage.stored(), 6)
  })

  test('a stream that takes only smaller messages makes a large one poison, after it was asked', async () => {
    const stage = new NatsStage(services().nats as string)
    const publisher = await stage.publisher()
    const { manager } = await stage.plain()
    await manager.streams.update(stage.topic, { max_msg_size: 1000 })
    const unresolved = await publisher.publish([
      sampleMessage(stage.topic, { key: 'k', payload: Buffer.alloc(2000) }),
      sampleMessage(stage.topic, { key: 'other' }),
    ])
    expect(unresolved).toMatchObject([{ class: 'poison', index: 0, outcome: 'failed' }])
  })

  test('topics that are no subjects are poison, and nothing reaches the server under them', async () => {
    const stage = new NatsStage(services().nats as string)
    const publisher = await stage.publisher()
    const topics = ['a b', 'orders.*', '>', '', '$JS.API.STREAM.PURGE.x', 'a\r\nPUB b 0']
    const unresolved = await publisher.publish(topics.map((topic) => sampleMessage(topic)))
    expect(unresolved.map((entry) => entry.class)).toEqual(topics.map(() => 'poison'))
    expect(await publisher.publish([sampleMessage(stage.topic)])).toEqual([])
  })

  test('while e1 is unknown e2 waits; an answer that comes late is no answer to another batch; the re-sent key is in order', async () => {
    const stage = new NatsStage(services().nats as string)
    const proxy = await proxyTo(stage.servers)
    const publisher = await stage.publisher({ timeoutMs: 400 }, { servers: proxy.address })
    const batch = keyedMessages(stage.topic, ['a', 'b'], 8)
    proxy.hold()
    const unresolved = await publisher.publish(batch)
    expect(unresolved.map(({ index, outcome }) => `${index} ${outcome}`)).toEqual([
      '0 unknown',
      '1 unknown',
      ...[2, 3, 4, 5, 6, 7].map((index) => `${index} unsent`),
    ])
    // The answers to the first two come now, into a batch whose first two are stored nowhere.
    const publishing = publisher.publish(keyedMessages(`missing-${randomUUID()}`, ['c', 'd'], 2))
    proxy.release()
    expect((await publishing).map(({ index }) => index)).toEqual([0, 1])
    // Of each key only the one that was in flight went out.
    expect((await stage.stored()).map(({ key, text }) => `${key} ${text}`)).toEqual(['a 0', 'b 0'])
    await publishAll(publisher, batch)
    expectInOrder(await stage.stored(), 4)
  })
})

describeWith('private nats', 'publishing to a server that fails', () => {
  test('the server is killed four times in mid-stream: nothing acknowledged is lost, every key is in order', async () => {
    const server = await startNats()
    onTestFinished(() => server.dispose())
    const stage = new NatsStage(server.address)
    // The deadline is far: what ends the waiting is that the connection went.
    const publisher = await stage.publisher({ timeoutMs: 20_000 })
    const messages = keyedMessages(stage.topic, sampleKeys(50), 60_000)
    const recoveries: number[] = []
    let attempts = 0
    for (let page = 0; page < 60; page++) {
      const batch = messages.slice(page * 1000, page * 1000 + 1000)
      if (page % 15 !== 7) {
        attempts += await publishAll(publisher, batch)
        continue
      }
      const publishing = publishAll(publisher, batch)
      await server.kill()
      await server.start()
      const up = systemClock.monotonic()
      attempts += await publishing
      recoveries.push(Math.round(systemClock.monotonic() - up))
    }
    const stored = await stage.stored()
    expectInOrder(stored, 1200)
    expect(new Set(stored.map(({ id }) => id)).size).toBe(60_000)
    expect(attempts).toBeGreaterThan(60)
    console.log(`page done ${recoveries.join(', ')} ms after the server was back`)
    for (const ms of recoveries) expect(ms).toBeLessThan(5000)
  })

  test('with the server away a batch fails within its deadline, and nothing piles up in the client', async () => {
    const server = await startNats()
    onTestFinished(() => server.dispose())
    const stage = new NatsStage(server.address)
    const publisher = await stage.publisher({ timeoutMs: 300 })
    await server.kill()
    for (let i = 0; i < 3; i++) {
      const unresolved = await publisher.publish(keyedMessages(stage.topic, sampleKeys(100), 1000))
      expect(unresolved).toHaveLength(1000)
      expect(unresolved.every((entry) => entry.class === 'retry')).toBe(true)
    }
    await server.start()
    expect(await publishAll(publisher, keyedMessages(stage.topic, ['k'], 3))).toBeGreaterThan(0)
    expect(await stage.stored()).toHaveLength(3)
  })

  test('no permission is fatal, and says which topic; wrong credentials do not start', async () => {
    const permissions = { publish: { deny: ['secret.>'] } }
    const users = [{ password: 'right', permissions, user: 'relay' }, { user: 'anybody' }]
    const server = await startNats({ settings: { authorization: { users }, no_auth_user: 'anybody' } })
    onTestFinished(() => server.dispose())
    const stage = new NatsStage(server.address)
    const login = { pass: 'right', user: 'relay' }
    const publisher = await stage.publisher({ timeoutMs: 5000 }, login)
    const [refused] = await publisher.publish([sampleMessage('secret.x')])
    // The server names the subject and no message: one before it, sent while that was allowed, may be there.
    expect(refused).toMatchObject({ class: 'fatal', outcome: 'unknown' })
    expect(refused?.error.message).toContain('secret.x')
    expect(await publisher.publish([sampleMessage(stage.topic)])).toEqual([])
    const wrong = stage.broker({ ...login, pass: 'wrong' }).publisher()
    await expect(wrong.start()).rejects.toMatchObject({ code: 'PUBLISH_FATAL' })
  })
})

function pause(delayMs: number): Promise<void> {
  return new Promise((resolve) => systemClock.setTimer(() => resolve(), delayMs))
}
