import { connect } from 'node:net'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'
import { afterEach, beforeEach, describe, expect, it, onTestFinished } from 'vitest'
import type { Partition, Subscription, SubscriptionOptions } from '../../src/brokers/broker.ts'
import type { MemoryBroker, MemoryServer } from '../../src/brokers/memory/index.ts'
import { createMemoryBroker, memory, serveMemory } from '../../src/brokers/memory/index.ts'
import { controlFrame, FRAME, FrameReader } from '../../src/brokers/memory/remote/frame.ts'
import { publishFrame, readPublish } from '../../src/brokers/memory/remote/message-frames.ts'
import { sampleMessage } from '../../src/testing/conformance/sample-message.ts'

let host: MemoryBroker
let server: MemoryServer

beforeEach(async () => {
  host = createMemoryBroker({ partitions: 1 })
  host.createTopic('t')
  server = await serveMemory(host)
})

afterEach(() => server.close())

function silent(): Omit<SubscriptionOptions, 'group' | 'topics'> {
  const nothing = (): void => {}
  return { onMessages: nothing, onAssigned: nothing, onRevoking: async () => {}, onLost: nothing, onError: nothing }
}

describe('a publisher over a socket', () => {
  it('answers unknown for what was under way when the socket was lost, and connects anew for the next', async () => {
    const broker = memory({ url: server.url })
    const publisher = broker.publisher()
    await publisher.start()
    host.faults.next({ delayMs: 10_000 })
    const publishing = publisher.publish([sampleMessage('t', { key: 'a' }), sampleMessage('t', { key: 'b' })])
    await expect.poll(() => host.faults.pending).toBe(0)
    await server.close()
    expect(await publishing).toMatchObject([
      { index: 0, outcome: 'unknown', class: 'retry', error: { code: 'CONNECTION_LOST' } },
      { index: 1, outcome: 'unknown', class: 'retry' },
    ])
    expect(await publisher.publish([sampleMessage('t')])).toMatchObject([
      { outcome: 'failed', class: 'retry', error: { code: 'BROKER_UNREACHABLE' } },
    ])
    server = await serveMemory(host, { port: Number(new URL(server.url).port) })
    expect(await publisher.publish([sampleMessage('t')])).toEqual([])
    expect(host.stats().topics['t']?.messages).toBe(1)
    await publisher.close()
  })

  it('answers unknown when no answer comes in time', async () => {
    const publisher = memory({ url: server.url }).publisher({ timeoutMs: 200 })
    await publisher.start()
    host.faults.next({ delayMs: 2000 })
    expect(await publisher.publish([sampleMessage('t')])).toMatchObject([{ outcome: 'unknown', class: 'retry' }])
    // On a busy machine one try may not connect within the 200 ms.
    await expect.poll(() => publisher.publish([sampleMessage('t')])).toEqual([])
    await publisher.close()
  })

  it('sends nothing of a key behind a frame whose outcome is open: of a large batch, the later frames are never sent', async () => {
    const publisher = memory({ url: server.url }).publisher({ timeoutMs: 500 })
    await publisher.start()
    host.faults.next({ delayMs: 1500, loseAnswer: true })
    // Each message fills a frame of its own.
    const payload = Buffer.alloc(700 * 1024)
    const batch = ['a', 'a', 'b'].map((key) => sampleMessage('t', { key, payload }))
    expect(await publisher.publish(batch)).toMatchObject([
      { index: 0, outcome: 'unknown' },
      { index: 1, outcome: 'unsent' },
      { index: 2, outcome: 'failed' },
    ])
    await expect.poll(() => host.stats().topics['t']?.messages).toBe(1)
    await publisher.close()
  })

  it.each([
    ['small', 'm'],
    ['whose topic has a long name', 'm'.repeat(5000)],
  ])('is told of each of ten thousand messages %s that were refused', async (_, missing) => {
    const publisher = memory({ url: server.url }).publisher()
    await publisher.start()
    const unresolved = await publisher.publish(Array.from({ length: 10_000 }, () => sampleMessage(missing)))
    expect(unresolved).toHaveLength(10_000)
    expect(unresolved.every((entry, index) => entry.index === index && entry.class === 'poison')).toBe(true)
    await publisher.close()
  })

  it('rejects start, and says what to do, when nobody serves there', async () => {
    await server.close()
    await expect(memory({ url: server.url }).publisher().start()).rejects.toMatchObject({
      code: 'BROKER_UNREACHABLE',
      message: expect.stringContaining('serveMemory'),
    })
  })
})

describe('a member over a socket', () => {
  it('loses its partitions with the connection, and joins again when the broker is back', async () => {
    const events: string[] = []
    const again = Promise.withResolvers<void>()
    const lost = Promise.withResolvers<void>()
    const subscription = memory({ url: server.url }).subscription({
      ...silent(),
      group: 'g',
      topics: ['t'],
      onAssigned: () => {
        events.push('assigned')
        if (events.length > 1) again.resolve()
      },
      onLost: () => {
        events.push('lost')
        lost.resolve()
      },
    })
    await subscription.start()
    await expect.poll(() => events).toEqual(['assigned'])
    await server.close()
    await lost.promise
    await expect(subscription.commit([{ topic: 't', partition: 0, position: 0n }])).rejects.toMatchObject({
      code: 'PARTITION_LOST',
    })
    expect(host.stats().groups['g']?.members).toBe(0)
    server = await serveMemory(host, { port: Number(new URL(server.url).port) })
    await again.promise
    expect(events).toEqual(['assigned', 'lost', 'assigned'])
    await subscription.stop()
    await subscription.stopped
  })

  it('that gave a partition up is told of its loss no more', async () => {
    host.createTopic('two', 2)
    const events: string[] = []
    const told = (name: string) => (partitions: readonly Partition[]) => {
      events.push(`${name} ${partitions.map((p) => p.partition).join()}`)
    }
    const subscribe = (): Subscription =>
      memory({ url: server.url }).subscription({
        ...silent(),
        group: 'g',
        topics: ['two'],
        onAssigned: told('assigned'),
        onRevoking: async (partitions) => told('revoking')(partitions),
        onLost: told('lost'),
      })
    const [first, second] = [subscribe(), subscribe()]
    onTestFinished(async () => void (await Promise.all([first.stop(), second.stop()])))
    await first.start()
    await expect.poll(() => events).toEqual(['assigned 0,1'])
    await second.start()
    await expect.poll(() => events.length).toBe(3)
    await server.close()
    await expect.poll(() => events.length).toBe(5)
    expect(events.slice(0, 3)).toEqual(['assigned 0,1', 'revoking 1', 'assigned 1'])
    expect(events.slice(3).toSorted((a, b) => a.localeCompare(b))).toEqual(['lost 0', 'lost 1'])
  })

  it('that says nothing for its session timeout is dead to the broker, though its socket is open', async () => {
    const socket = connect({ host: '127.0.0.1', port: Number(new URL(server.url).port) })
    socket.write(controlFrame({ request: 1, method: 'hello', protocol: 1 }))
    socket.write(controlFrame({ request: 2, method: 'subscribe', group: 'g', topics: ['t'], sessionTimeoutMs: 200 }))
    await expect.poll(() => host.stats().groups['g']?.members).toBe(1)
    const closed = once(socket.resume(), 'close')
    await closed
    expect(host.stats().groups['g']?.members).toBe(0)
  })

  it('that takes nothing is sent two hand-overs and no more, until it takes one', async () => {
    const publisher = memory({ host }).publisher()
    await publisher.start()
    await publisher.publish(Array.from({ length: 5000 }, () => sampleMessage('t')))
    const socket = connect({ host: '127.0.0.1', port: Number(new URL(server.url).port) })
    let handOvers = 0
    let assignment = 0
    const reader = new FrameReader((kind, body) => {
      if (kind === FRAME.handOver) handOvers++
      else if (String(body).includes('assigned')) assignment = Number(/"assignment":(\d+)/.exec(String(body))?.[1])
    })
    socket.on('data', (chunk) => reader.push(chunk))
    socket.write(controlFrame({ request: 1, method: 'hello', protocol: 1 }))
    socket.write(controlFrame({ request: 2, method: 'subscribe', group: 'g', topics: ['t'], sessionTimeoutMs: 60_000 }))
    await expect.poll(() => handOvers).toBe(2)
    // Nothing announces what does not come.
    await new Promise((resolve) => setTimeout(resolve, 100))
    expect(handOvers).toBe(2)
    socket.write(controlFrame({ tell: 'taken', assignment }))
    await expect.poll(() => handOvers).toBe(3)
    socket.destroy()
  })

  it('that pauses in every hand-over gets each message once', async () => {
    const publisher = memory({ host }).publisher()
    await publisher.start()
    await publisher.publish(Array.from({ length: 5000 }, () => sampleMessage('t')))
    const ids: string[] = []
    let handOvers = 0
    const subscription = memory({ url: server.url }).subscription({
      ...silent(),
      group: 'g',
      topics: ['t'],
      onMessages: (partition, messages) => {
        handOvers++
        ids.push(...messages.map((message) => message.id))
        subscription.pause([partition])
      },
    })
    await subscription.start()
    await expect.poll(() => handOvers).toBe(1)
    while (ids.length < 5000) {
      const before = handOvers
      subscription.resume([{ topic: 't', partition: 0 }])
      await expect.poll(() => handOvers, { interval: 1 }).toBe(before + 1)
    }
    expect(new Set(ids).size).toBe(5000)
    await subscription.stop()
  })
})

it('a process that is killed in the middle of publishing leaves the broker and what it stored', async () => {
  const script = fileURLToPath(new URL('../support/publish-until-killed.ts', import.meta.url))
  const child = spawn(process.execPath, [script, server.url, 't'], { stdio: 'inherit' })
  await expect.poll(() => host.stats().topics['t']?.messages ?? 0).toBeGreaterThan(100)
  child.kill('SIGKILL')
  await once(child, 'exit')
  const publisher = memory({ url: server.url }).publisher()
  await publisher.start()
  expect(await publisher.publish([sampleMessage('t', { key: 'after' })])).toEqual([])
  await publisher.close()
})

describe('a stream that breaks the protocol', () => {
  const hello = controlFrame({ request: 1, method: 'hello', protocol: 1 })
  const hostile: readonly (readonly [string, Buffer])[] = [
    ['a length of 4 GB', Buffer.from([0xff, 0xff, 0xff, 0xff, 1, 2, 3])],
    ['a length of nothing', Buffer.from([0, 0, 0, 0, 1])],
    ['an unknown kind', Buffer.from([1, 0, 0, 0, 99])],
    ['a control frame that is not JSON', Buffer.from([2, 0, 0, 0, 1, 0x7b])],
    ['a control frame that is no object', Buffer.from([2, 0, 0, 0, 1, 0x31])],
    ['a publish before hello', publishFrame(1, [sampleMessage('t')], 0).frame],
    [
      'a publish whose field reaches beyond its frame',
      Buffer.concat([hello, Buffer.from([9, 0, 0, 0, 2, 1, 0, 0, 0, 0xff, 0xff, 0xff, 0x7f])]),
    ],
  ]

  it.each(hostile)('%s: it is cut, and the broker goes on', async (_, bytes) => {
    const socket = connect({ host: '127.0.0.1', port: Number(new URL(server.url).port) })
    const closed = once(socket.resume(), 'close')
    socket.write(bytes)
    await closed
    expect(host.stats().topics['t']?.messages).toBe(0)
    const publisher = memory({ url: server.url }).publisher()
    await publisher.start()
    expect(await publisher.publish([sampleMessage('t')])).toEqual([])
    await publisher.close()
  })

  it('a request before hello, or with fields of the wrong kind, is refused', async () => {
    const socket = connect({ host: '127.0.0.1', port: Number(new URL(server.url).port) })
    const answers: string[] = []
    const reader = new FrameReader((_, body) => answers.push(String(body)))
    socket.on('data', (chunk) => reader.push(chunk))
    socket.write(controlFrame({ request: 1, method: 'createTopic', topic: 'evil' }))
    socket.write(hello)
    socket.write(controlFrame({ request: 3, method: 'createTopic', topic: 7 }))
    socket.write(controlFrame({ request: 4, method: 'createTopic', topic: 'evil', partitions: 1e9 }))
    socket.write(controlFrame({ request: 5, method: 'commit', positions: 'all' }))
    await expect.poll(() => answers.length).toBe(5)
    expect(answers.filter((answer) => answer.includes('"error"'))).toHaveLength(4)
    expect(Object.keys(host.stats().topics)).toEqual(['t'])
    socket.destroy()
  })

  it('every truncation of a publish frame is refused before anything is made of it', () => {
    const { frame } = publishFrame(7, [sampleMessage('t', { key: 'k', headers: { a: 'b' } })], 0)
    // Cut behind the request id it would be an empty batch.
    for (let length = 5; length < frame.length - 5; length++) {
      expect(() => readPublish(frame.subarray(5, 5 + length)), `cut at ${length}`).toThrow(/beyond its frame/)
    }
    expect(readPublish(frame.subarray(5)).batch).toHaveLength(1)
  })

  it('frames are the same however the stream is cut into chunks', () => {
    const frames = [controlFrame({ a: 1 }), publishFrame(7, [sampleMessage('t')], 0).frame, controlFrame({ b: 'ü' })]
    const stream = Buffer.concat(frames)
    for (let size = 1; size < stream.length; size += 3) {
      const seen: Buffer[] = []
      const reader = new FrameReader((kind, body) => seen.push(Buffer.concat([Buffer.from([kind]), body])))
      for (let at = 0; at < stream.length; at += size) reader.push(stream.subarray(at, at + size))
      expect(Buffer.concat(seen).equals(Buffer.concat(frames.map((frame) => frame.subarray(4))))).toBe(true)
    }
  })
})

it('a URL that is not on this machine, or not whole, is refused', () => {
  for (const url of ['memory://10.0.0.1:4000', 'memory://127.0.0.1', 'memory://127.0.0.1:0', 'nats://127.0.0.1:1']) {
    expect(() => memory({ url }), url).toThrow(/memory:\/\/127\.0\.0\.1:PORT/)
  }
})
