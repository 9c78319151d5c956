import { once } from 'node:events'
import { type AddressInfo, createServer } from 'node:net'
import { expect, onTestFinished, test } from 'vitest'
import { nats } from '../../src/brokers/nats/index.ts'
import { systemClock } from '../../src/core/clock.ts'
import { keyedMessages, sampleKeys, sampleMessage } from '../../src/testing/conformance/sample-message.ts'
import { startNats } from '../../src/testing/services/index.ts'
import { describeWith, services } from '../support/services.ts'
import { expectInOrder, NatsStage, proxyTo, publishAll } from './nats-stage.ts'

const FSYNC = { durability: 'fsync' } as const
const ALWAYS = { settings: { jetstream: { sync_interval: 'always' } } }

describeWith('nats', "durability 'fsync'", () => {
  test('a page is one batch on the stream, whole and in order; published again, it is there once', async () => {
    const stage = new NatsStage(services().nats as string)
    const publisher = await stage.publisher({}, FSYNC)
    const batch = keyedMessages(stage.topic, sampleKeys(10), 500)
    expect(await publisher.publish(batch)).toEqual([])
    expect((await headersAt(stage, 1)).get('Nats-Batch-Sequence')).toBe('1')
    expect((await headersAt(stage, 500)).get('Nats-Batch-Sequence')).toBe('500')
    expect((await headersAt(stage, 500)).get('Nats-Batch-Id')).toBe((await headersAt(stage, 1)).get('Nats-Batch-Id'))
    expect(await publisher.publish(batch)).toEqual([])
    const stored = await stage.stored()
    expect(stored).toHaveLength(500)
    expectInOrder(stored, 50)
  })

  test('a batch of which the stream knows a part is learned one by one: the rest is stored, nothing twice', async () => {
    const stage = new NatsStage(services().nats as string)
    const publisher = await stage.publisher({}, FSYNC)
    const batch = keyedMessages(stage.topic, sampleKeys(7), 700)
    expect(await publisher.publish(batch.slice(0, 200))).toEqual([])
    expect(await publisher.publish(batch)).toEqual([])
    const stored = await stage.stored()
    expect(stored).toHaveLength(700)
    expectInOrder(stored, 100)
  })

  test('100,000 messages over 10 keys, in pages larger than a batch, are stored once each, in the order of their key', async () => {
    const stage = new NatsStage(services().nats as string)
    const publisher = await stage.publisher({}, FSYNC)
    const messages = keyedMessages(stage.topic, sampleKeys(10), 100_000)
    for (let i = 0; i < messages.length; i += 2500) {
      expect(await publisher.publish(messages.slice(i, i + 2500))).toEqual([])
    }
    const stored = await stage.stored()
    expect(stored).toHaveLength(100_000)
    expectInOrder(stored, 10_000)
  })

  test('a stream without atomic batches, or in memory, is refused with the fix; mended, it is published to', async () => {
    const stage = new NatsStage(services().nats as string)
    const publisher = await stage.publisher({}, FSYNC)
    const { manager } = await stage.plain()
    const other = `${stage.topic}-other`
    await manager.streams.add({ name: other, subjects: [other] })
    await manager.streams.add({ allow_atomic: true, name: `${other}-m`, storage: 'memory', subjects: [`${other}-m`] })
    onTestFinished(async () => {
      await manager.streams.delete(other)
      await manager.streams.delete(`${other}-m`)
    })
    const mixed = [sampleMessage(other), sampleMessage(stage.topic), sampleMessage(`${other}-m`)]
    const [disabled, inMemory] = await publisher.publish(mixed)
    expect(disabled).toMatchObject({ class: 'fatal', error: { code: 'CONFIG_INVALID' }, index: 0, outcome: 'failed' })
    expect(disabled?.error.message).toContain('allow_atomic')
    expect(inMemory).toMatchObject({ class: 'fatal', error: { code: 'CONFIG_INVALID' }, index: 2, outcome: 'failed' })
    expect(inMemory?.error.message).toContain('on file')
    expect(await stage.stored()).toHaveLength(1)
    await manager.streams.update(other, { allow_atomic: true })
    const page = keyedMessages(other, sampleKeys(3), 60)
    await expect.poll(() => publisher.publish(page)).toEqual([])
    expect((await manager.streams.info(other)).state.messages).toBe(60)
  })

  test('a stream that loses atomic batches while it is published to is refused, and says why', async () => {
    const stage = new NatsStage(services().nats as string)
    const publisher = await stage.publisher({}, FSYNC)
    const { manager } = await stage.plain()
    expect(await publisher.publish(keyedMessages(stage.topic, ['k'], 50))).toEqual([])
    await manager.streams.update(stage.topic, { allow_atomic: false })
    const unresolved = await publisher.publish(keyedMessages(stage.topic, ['k'], 50))
    expect(unresolved).toHaveLength(50)
    expect(unresolved[0]).toMatchObject({ class: 'fatal', index: 0, outcome: 'failed' })
    expect(await stage.stored()).toHaveLength(50)
  })

  test('a stream that is full takes what fits, in order; with room again the rest follows', async () => {
    const stage = new NatsStage(services().nats as string)
    const publisher = await stage.publisher({}, FSYNC)
    const { manager } = await stage.plain()
    await manager.streams.update(stage.topic, { discard: 'new', max_msgs: 30 })
    const batch = keyedMessages(stage.topic, ['a', 'b'], 100)
    const unresolved = await publisher.publish(batch)
    expect(unresolved.every((entry) => entry.class === 'retry')).toBe(true)
    expect(unresolved).toHaveLength(70)
    await manager.streams.update(stage.topic, { max_msgs: -1 })
    await publishAll(
      publisher,
      unresolved.map(({ index }) => batch[index] as (typeof batch)[number]),
    )
    const stored = await stage.stored()
    expect(stored).toHaveLength(100)
    expectInOrder(stored, 50)
  })

  test('one message too large for the stream is poison and holds its key; all else of the batch is stored', async () => {
    const stage = new NatsStage(services().nats as string)
    const publisher = await stage.publisher({}, FSYNC)
    const { manager } = await stage.plain()
    await manager.streams.update(stage.topic, { max_msg_size: 1000 })
    const batch = keyedMessages(stage.topic, ['a', 'b'], 40)
    batch[10] = sampleMessage(stage.topic, { key: 'a', payload: Buffer.alloc(2000) })
    const unresolved = await publisher.publish(batch)
    const expected = batch.flatMap(({ key }, i) => (key === 'a' && i > 10 ? [`${i} unsent poison`] : []))
    expect(unresolved.map(({ class: errorClass, index, outcome }) => `${index} ${outcome} ${errorClass}`)).toEqual([
      '10 failed poison',
      ...expected,
    ])
    expect(await stage.stored()).toHaveLength(25)
  })

  test('e1 is unknown and e2 waits: a batch whose answer was lost is sent again, and each key is once and in order', async () => {
    const stage = new NatsStage(services().nats as string)
    const proxy = await proxyTo(stage.servers)
    const publisher = await stage.publisher({ timeoutMs: 400 }, { ...FSYNC, servers: proxy.address })
    const messages = keyedMessages(stage.topic, sampleKeys(6), 1200)
    await publishAll(publisher, messages.slice(0, 300))
    proxy.hold()
    // Larger than a batch: what does not fit waits, and is not sent behind the unknown.
    const rest = messages.slice(300)
    const unresolved = await publisher.publish([...rest, ...keyedMessages(stage.topic, ['more'], 500)])
    expect(unresolved).toHaveLength(1400)
    expect(unresolved.slice(0, 900).every(({ outcome }) => outcome === 'unknown')).toBe(true)
    expect(unresolved.slice(1000).every(({ outcome }) => outcome === 'unsent')).toBe(true)
    proxy.release()
    await publishAll(publisher, rest)
    const stored = (await stage.stored()).filter(({ key }) => key !== 'more')
    expect(stored).toHaveLength(1200)
    expectInOrder(stored, 200)
  })
})

describeWith('private nats', "durability 'fsync' on a server that fails", () => {
  test('the server is killed six times in mid-batch: nothing is lost, every key is once and in order', async () => {
    const server = await startNats(ALWAYS)
    onTestFinished(() => server.dispose())
    const stage = new NatsStage(server.address)
    const publisher = await stage.publisher({ timeoutMs: 20_000 }, FSYNC)
    const messages = keyedMessages(stage.topic, sampleKeys(10), 30_000)
    let attempts = 0
    for (let page = 0; page < 60; page++) {
      const publishing = publishAll(publisher, messages.slice(page * 500, page * 500 + 500))
      if (page % 10 === 4) {
        // Some milliseconds in: while it is sent, staged, synced or answered.
        await pause((page % 7) * 2)
        await server.kill()
        await server.start()
      }
      attempts += await publishing
    }
    const stored = await stage.stored()
    expect(attempts).toBeGreaterThan(60)
    expect(stored).toHaveLength(30_000)
    expectInOrder(stored, 3000)
  })

  test('a server that stands still for longer than the deadline: what was sent meanwhile is there once, in order', async () => {
    const server = await startNats(ALWAYS)
    onTestFinished(() => server.dispose())
    const stage = new NatsStage(server.address)
    const publisher = await stage.publisher({ timeoutMs: 1000 }, FSYNC)
    const messages = keyedMessages(stage.topic, sampleKeys(10), 2000)
    await publishAll(publisher, messages.slice(0, 500))
    process.kill(server.pid, 'SIGSTOP')
    const unresolved = await publisher.publish(messages.slice(500, 1000))
    expect(unresolved).toHaveLength(500)
    expect(unresolved.every(({ class: errorClass, outcome }) => errorClass === 'retry' && outcome === 'unknown')).toBe(
      true,
    )
    // Sent again while the server does not read: it has the batch twice when it wakes up.
    expect(await publisher.publish(messages.slice(500, 1000))).toHaveLength(500)
    process.kill(server.pid, 'SIGCONT')
    for (let i = 500; i < 2000; i += 500) await publishAll(publisher, messages.slice(i, i + 500))
    const stored = await stage.stored()
    expect(stored).toHaveLength(2000)
    expectInOrder(stored, 200)
  })

  test('a server too old for atomic batches is named at start', async () => {
    const info = { headers: true, jetstream: true, max_payload: 1 << 20, proto: 1, server_id: 'X', version: '2.11.9' }
    const server = createServer((socket) => {
      socket.on('error', () => {})
      socket.write(`INFO ${JSON.stringify(info)}\r\n`)
      socket.on('data', (data) => {
        if (data.includes('PING')) socket.write('PONG\r\n')
      })
    })
    server.listen(0, '127.0.0.1')
    await once(server, 'listening')
    onTestFinished(() => void server.close())
    const broker = nats({ ...FSYNC, servers: `127.0.0.1:${(server.address() as AddressInfo).port}` })
    onTestFinished(() => broker.close())
    const start = broker.publisher().start()
    await expect(start).rejects.toMatchObject({ code: 'SERVER_TOO_OLD' })
    await expect(start).rejects.toThrow('2.12.1')
  })
})

async function headersAt(stage: NatsStage, seq: number) {
  const { manager } = await stage.plain()
  const message = await manager.streams.getMessage(stage.topic, { seq })
  if (message === null) throw new Error(`nothing at ${seq}`)
  return message.header
}

function pause(delayMs: number): Promise<void> {
  return new Promise((resolve) => systemClock.setTimer(() => resolve(), delayMs))
}
