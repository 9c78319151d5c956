/**
 * What one case uses, and its cleaning up: clients, publishers, readers and topics made through the stage are stopped,
 * deleted and closed when the case ends, whether it passed or not, each within the deadline.
 */
import assert from 'node:assert/strict'
import type { Broker, Capabilities, Publisher, PublisherOptions, Unresolved } from '../../brokers/broker.ts'
import { systemClock, withDeadline } from '../../core/clock.ts'
import type { OutgoingMessage } from '../../core/message.ts'
import type { ConformanceCase, ConformanceContext } from './conformance-case.ts'
import { RecordingReader } from './recording-reader.ts'
import type { ReaderOptions } from './recording-reader.ts'

/** Makes a case out of its guarantee and a body that runs on a {@link Stage}. */
export function onStage(
  name: string,
  body: (stage: Stage) => Promise<void>,
  needs?: (capabilities: Capabilities, context: ConformanceContext) => boolean,
): ConformanceCase {
  const run = async (context: ConformanceContext): Promise<void> => {
    const stage = new Stage(context)
    let failed = true
    try {
      await body(stage)
      failed = false
    } finally {
      await stage.clear(failed)
    }
    assert.deepEqual(stage.violations(), [], 'the subscription broke the port')
  }
  return needs === undefined ? { name, run } : { name, needs, run }
}

export class Stage {
  readonly context: ConformanceContext
  readonly deadlineMs: number
  readonly #readers: RecordingReader[] = []
  readonly #clearing: (() => Promise<unknown>)[] = []
  #main: Promise<Broker> | undefined

  constructor(context: ConformanceContext) {
    this.context = context
    this.deadlineMs = context.deadlineMs ?? 20_000
  }

  /** A fresh client. */
  async broker(): Promise<Broker> {
    const broker = await this.context.broker()
    this.#clearing.push(() => broker.close())
    return broker
  }

  /** The client that publishes and administers. */
  main(): Promise<Broker> {
    return (this.#main ??= this.broker())
  }

  /** A new topic. */
  async topic(partitions = 4): Promise<string> {
    const broker = await this.main()
    const topic = this.context.topic()
    await this.within(broker.admin.createTopic(topic, { partitions }), 'createTopic')
    this.#clearing.push(() => broker.admin.deleteTopic(topic))
    return topic
  }

  /** A started publisher. */
  async publisher(options?: PublisherOptions): Promise<Publisher> {
    const publisher = (await this.main()).publisher(options)
    await this.within(publisher.start(), 'the publisher to connect')
    this.#clearing.push(() => publisher.close())
    return publisher
  }

  /** A started member of a group, on a client of its own. */
  async reader(options: ReaderOptions): Promise<RecordingReader> {
    const reader = new RecordingReader(
      await this.broker(),
      systemClock,
      this.deadlineMs,
      this.context.sessionTimeoutMs ?? 6000,
      options,
    )
    this.#readers.push(reader)
    this.#clearing.push(() => reader.stop())
    await reader.start()
    return reader
  }

  /** Publishes in batches of 500; every message must be stored. */
  async publish(publisher: Publisher, messages: readonly OutgoingMessage[]): Promise<void> {
    for (let i = 0; i < messages.length; i += 500) {
      const unresolved = await this.outcome(publisher, messages.slice(i, i + 500))
      assert.deepEqual(unresolved, [], `every message of the batch at ${i} is stored`)
    }
  }

  /** Publishes one batch and returns what became of it. */
  outcome(publisher: Publisher, batch: readonly OutgoingMessage[]): Promise<readonly Unresolved[]> {
    return this.within(publisher.publish(batch), `the outcome of ${batch.length} messages`)
  }

  /** The promise, bounded by the deadline. */
  within<T>(promise: Promise<T>, what: string): Promise<T> {
    return withDeadline(
      systemClock,
      promise,
      this.deadlineMs,
      () => new Error(`waited ${this.deadlineMs} ms for ${what}`),
    )
  }

  /** What the readers saw that must never be. */
  violations(): string[] {
    return this.#readers.flatMap((reader) => reader.violations)
  }

  /** Undoes everything, last first. Its own errors count only when the case has not failed already. */
  async clear(quietly: boolean): Promise<void> {
    const errors: unknown[] = []
    for (const undo of this.#clearing.reverse()) {
      await this.within(undo(), 'the case to be cleaned up').catch((error: unknown) => errors.push(error))
    }
    if (!quietly && errors.length > 0) throw errors[0]
  }
}
