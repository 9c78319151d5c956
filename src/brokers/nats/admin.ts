import type { JetStreamManager } from '@nats-io/jetstream'
import { MillraceError } from '../../core/errors.ts'
import type { BrokerAdmin } from '../broker.ts'
import { codeOf, findStream } from './find-stream.ts'
import { isSubject, streamName } from './names.ts'
import type { ResolvedNatsOptions } from './nats-options.ts'

const NANOS = 1_000_000
/** "subjects overlap with an existing stream", "stream name already in use": somebody else made it meanwhile. */
const ALREADY_THERE: ReadonlySet<number> = new Set([10058, 10065])

/** Makes and deletes streams, one per topic. Streams with wider subjects, made by hand, are respected. */
export class NatsAdmin implements BrokerAdmin {
  readonly #manager: () => Promise<JetStreamManager>
  readonly #options: ResolvedNatsOptions

  constructor(manager: () => Promise<JetStreamManager>, options: ResolvedNatsOptions) {
    this.#manager = manager
    this.#options = options
  }

  async createTopic(topic: string): Promise<void> {
    if (!isSubject(topic)) {
      throw new MillraceError('CONFIG_INVALID', `${JSON.stringify(topic)} is no subject without wildcards`)
    }
    const manager = await this.#manager()
    if ((await findStream(manager, topic)) !== undefined) return
    const { duplicateWindowMs, maxAgeMs, replicas, storage } = this.#options.stream
    try {
      await manager.streams.add({
        allow_direct: true,
        ...(this.#options.durability === 'fsync' ? { allow_atomic: true } : {}),
        // The server refuses a window longer than the age.
        duplicate_window: Math.min(duplicateWindowMs, maxAgeMs ?? Infinity) * NANOS,
        name: streamName(topic),
        num_replicas: replicas,
        storage,
        subjects: [topic],
        ...(maxAgeMs === undefined ? {} : { max_age: maxAgeMs * NANOS }),
      })
    } catch (error) {
      if (!ALREADY_THERE.has(codeOf(error)) || (await findStream(manager, topic)) === undefined) throw error
    }
  }

  async deleteTopic(topic: string): Promise<void> {
    const manager = await this.#manager()
    const stream = await findStream(manager, topic)
    if (stream === undefined) return
    const { config } = await manager.streams.info(stream)
    // A stream that holds other subjects, too, keeps them: only what is of this topic goes.
    if (config.subjects.length === 1 && config.subjects[0] === topic) await manager.streams.delete(stream)
    else await manager.streams.purge(stream, { filter: topic })
  }
}
