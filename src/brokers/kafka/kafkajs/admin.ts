import type { Admin, KafkaJSError } from 'kafkajs'
import { delay, systemClock, withDeadline } from '../../../core/clock.ts'
import { MillraceError } from '../../../core/errors.ts'
import type { BrokerAdmin } from '../../broker.ts'
import type { Connector } from './connections.ts'
import { classify, innermost } from './error-class.ts'
import { retryWithin } from './producer-session.ts'

const POLL_MS = 50
const TIMEOUT_MS = 15_000

/** Makes and deletes topics, each over a connection of its own that ends with the task. */
export class KafkajsAdmin implements BrokerAdmin {
  readonly #connector: Connector

  constructor(connector: Connector) {
    this.#connector = connector
  }

  /** Resolves when every partition has a leader. Partitions and replicas not named are the broker's defaults. */
  async createTopic(topic: string, options: { readonly partitions?: number } = {}): Promise<void> {
    await this.#run(`make topic ${topic}`, async (admin) => {
      await admin.createTopics({
        timeout: TIMEOUT_MS,
        topics: [{ topic, numPartitions: options.partitions ?? -1, replicationFactor: -1 }],
        waitForLeaders: false,
      })
      // Ours, for kafkajs' own wait ends with an error when a broker has not heard of the topic yet.
      const deadline = systemClock.monotonic() + TIMEOUT_MS
      for (let error = await leaderless(admin, topic); error !== undefined; error = await leaderless(admin, topic)) {
        if (classify(error).class === 'fatal' || systemClock.monotonic() > deadline) throw error
        await delay(systemClock, POLL_MS)
      }
    })
  }

  async deleteTopic(topic: string): Promise<void> {
    await this.#run(`delete topic ${topic}`, async (admin) => {
      try {
        await admin.deleteTopics({ topics: [topic], timeout: TIMEOUT_MS })
      } catch (error) {
        // It is not there, which is what was asked for.
        if ((innermost(error) as { type?: unknown }).type !== 'UNKNOWN_TOPIC_OR_PARTITION') throw error
      }
    })
  }

  async #run(what: string, task: (admin: Admin) => Promise<unknown>): Promise<void> {
    const connections = await this.#connector.open({ requestTimeoutMs: TIMEOUT_MS, retry: retryWithin(TIMEOUT_MS) })
    // Not more retries than for a moment without a controller: a topic that is not there is retried just as often.
    const admin = connections.kafka.admin({ retry: { initialRetryTime: 50, retries: 2 } })
    const work = async (): Promise<void> => {
      await admin.connect()
      await task(admin)
      await admin.disconnect()
    }
    try {
      await withDeadline(systemClock, work(), 2 * TIMEOUT_MS, () => refused(what, new Error('no answer in time')))
    } catch (error) {
      throw error instanceof MillraceError ? error : refused(what, innermost(error))
    } finally {
      this.#connector.release(connections)
    }
  }
}

/** Why the topic cannot be used yet; undefined when every partition has a leader. */
async function leaderless(admin: Admin, topic: string): Promise<Error | undefined> {
  try {
    const { topics } = await admin.fetchTopicMetadata({ topics: [topic] })
    const partitions = topics[0]?.partitions ?? []
    const led = partitions.length > 0 && partitions.every((one) => one.leader >= 0)
    return led ? undefined : new Error('not every partition has a leader')
  } catch (error) {
    return error as Error
  }
}

function refused(what: string, cause: unknown): MillraceError {
  // createTopics gathers what it met per topic.
  const first = (cause as { errors?: readonly KafkaJSError[] }).errors?.[0] ?? (cause as Error)
  return new MillraceError('BROKER_UNREACHABLE', `Kafka did not ${what}: ${first.message}`, { cause })
}
