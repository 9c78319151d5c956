import { randomUUID } from 'node:crypto'
import { once } from 'node:events'
import { createServer, createConnection, type AddressInfo, type Socket } from 'node:net'
import { jetstreamManager, type JetStreamManager } from '@nats-io/jetstream'
import { connect, type NatsConnection } from '@nats-io/transport-node'
import { expect, onTestFinished } from 'vitest'
import type { Broker, Publisher, PublisherOptions, Unresolved } from '../../src/brokers/broker.ts'
import { nats, type NatsOptions } from '../../src/brokers/nats/index.ts'
import { systemClock } from '../../src/core/clock.ts'
import type { OutgoingMessage } from '../../src/core/message.ts'
import { RecordingReader, type ReaderOptions } from '../../src/testing/conformance/recording-reader.ts'

/** Brokers, publishers, members and plain clients on one server; all of it is closed when the test ends. */
export class NatsStage {
  readonly servers: string
  readonly topic = `topic-${randomUUID()}`
  readonly group = `group-${randomUUID()}`

  constructor(servers: string) {
    this.servers = servers
  }

  broker(options: Partial<NatsOptions> = {}): Broker {
    const broker = nats({ servers: this.servers, ...options })
    onTestFinished(() => broker.close())
    return broker
  }

  /** A plain client of NATS. */
  async plain(): Promise<{ readonly manager: JetStreamManager; readonly nc: NatsConnection }> {
    const nc = await connect({ maxReconnectAttempts: -1, reconnectTimeWait: 100, servers: this.servers })
    onTestFinished(() => nc.close())
    return { manager: await jetstreamManager(nc), nc }
  }

  /** A started publisher, and the stage's topic. */
  async publisher(options?: PublisherOptions, natsOptions?: Partial<NatsOptions>): Promise<Publisher> {
    const broker = this.broker(natsOptions)
    await broker.admin.createTopic(this.topic)
    const publisher = broker.publisher(options)
    await publisher.start()
    onTestFinished(() => publisher.close())
    return publisher
  }

  /** A member that is not started. */
  member(sessionTimeoutMs: number, options: Partial<ReaderOptions> = {}, broker = this.broker()): RecordingReader {
    const reader = new RecordingReader(broker, systemClock, 60_000, sessionTimeoutMs, {
      autoCommit: false,
      group: this.group,
      topics: [this.topic],
      ...options,
    })
    onTestFinished(async () => {
      await reader.subscription.stop()
      expect(reader.violations).toEqual([])
    })
    return reader
  }

  /** All that is on the stage's topic, oldest first, read by a plain client: ids and keys. */
  async stored(): Promise<{ readonly id: string; readonly key: string; readonly text: string }[]> {
    const { manager, nc } = await this.plain()
    const stream = await manager.streams.find(this.topic)
    const { state } = await manager.streams.info(stream)
    const found: { id: string; key: string; text: string }[] = []
    if (state.messages === 0) return found
    const consumer = await manager.consumers.add(stream, {
      ack_policy: 'none',
      deliver_policy: 'all',
      mem_storage: true,
    })
    const done = Promise.withResolvers<void>()
    const inbox = `_INBOX.${randomUUID()}`
    nc.subscribe(inbox, {
      callback: (_, message) => {
        const { data, headers } = message
        if (headers?.code) {
          const count = `${found.length} of ${state.messages} messages`
          return done.reject(new Error(`${count}: ${headers.code} ${headers.description}`))
        }
        found.push({
          id: headers?.get('millrace-id') ?? '',
          key: headers?.get('millrace-key') ?? '',
          text: Buffer.from(data).toString(),
        })
        if (found.length === state.messages) done.resolve()
      },
    })
    nc.publish(
      `$JS.API.CONSUMER.MSG.NEXT.${stream}.${consumer.name}`,
      JSON.stringify({ batch: state.messages, expires: 100_000_000_000 }),
      { reply: inbox },
    )
    await done.promise
    return found
  }
}

/** Publishes a batch again and again, in order and only what is unresolved, as the relay does; returns the attempts. */
export async function publishAll(publisher: Publisher, batch: readonly OutgoingMessage[]): Promise<number> {
  let left = batch
  for (let attempt = 1; ; attempt++) {
    const unresolved: readonly Unresolved[] = await publisher.publish(left)
    if (unresolved.length === 0) return attempt
    for (const { class: errorClass, error } of unresolved) {
      if (errorClass !== 'retry' && errorClass !== 'throttle') throw error
    }
    left = unresolved.map(({ index }) => left[index] as OutgoingMessage)
    await new Promise((resolve) => systemClock.setTimer(() => resolve(undefined), 20))
  }
}

/** Expects the texts of each key to be 0, 1, 2 … `perKey - 1`. */
export function expectInOrder(messages: readonly { key: string | null; text: string }[], perKey: number): void {
  const byKey = Map.groupBy(messages, (message) => message.key)
  for (const [key, ofKey] of byKey) {
    const wrong = ofKey.findIndex(({ text }, index) => text !== String(index))
    if (wrong >= 0) expect.unreachable(`${key}: ${ofKey[wrong]?.text} at ${wrong}`)
    expect(ofKey).toHaveLength(perKey)
  }
}

/** What stands between a client and a server. */
export interface Proxy {
  readonly address: string
  /** Breaks every connection, with what is on its way. New ones may come. */
  cut(): void
  /** Keeps back what the server says, until `release`. What clients say goes on. */
  hold(): void
  release(): void
}

export async function proxyTo(target: string): Promise<Proxy> {
  const { hostname, port } = new URL(target.includes('://') ? target : `nats://${target}`)
  const pairs = new Set<{ readonly far: Socket; readonly near: Socket }>()
  const proxy = createServer((near) => {
    const far = createConnection(Number(port), hostname)
    const pair = { far, near }
    pairs.add(pair)
    for (const socket of [near, far]) {
      socket.on('error', () => {})
      socket.on('close', () => {
        pairs.delete(pair)
        near.destroy()
        far.destroy()
      })
    }
    near.pipe(far)
    far.pipe(near)
  })
  proxy.listen(0, '127.0.0.1')
  await once(proxy, 'listening')
  const cut = (): void => {
    for (const { near } of pairs) near.destroy()
  }
  onTestFinished(() => {
    cut()
    proxy.close()
  })
  return {
    address: `127.0.0.1:${(proxy.address() as AddressInfo).port}`,
    cut,
    hold: () => {
      for (const { far, near } of pairs) far.unpipe(near).pause()
    },
    release: () => {
      for (const { far, near } of pairs) far.pipe(near)
    },
  }
}
