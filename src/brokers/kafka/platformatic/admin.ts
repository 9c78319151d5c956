import { delay, systemClock, withDeadline } from '../../../core/clock.ts'
import { MillraceError } from '../../../core/errors.ts'
import type { BrokerAdmin } from '../../broker.ts'
import type { Client } from './client.ts'
import type { Connector } from './connector.ts'
import { classify } from './error-class.ts'

const POLL_MS = 50
const TIMEOUT_MS = 15_000

/** Makes and deletes topics, each over connections of its own that end with the task. */
export class PlatformaticAdmin implements BrokerAdmin {
  readonly #connector: Connector

  constructor(connector: Connector) {
    this.#connector = connector
  }

  /** Resolves when every partition has a leader. Partitions and replicas not named are the broker's defaults. */
  async createTopic(topic: string, options: { readonly partitions?: number } = {}): Promise<void> {
    const wanted = { assignments: [], configs: [], name: topic, numPartitions: options.partitions ?? -1 }
    await this.#run(`make topic ${topic}`, async (client) => {
      const link = await client.any('control')
      const { topics } = await link.request('createTopics', [{ ...wanted, replicationFactor: -1 }], TIMEOUT_MS, false)
      refuse(client, topics[0], 'TOPIC_ALREADY_EXISTS')
      for (;;) {
        const info = (await client.topics([topic], true)).get(topic)
        const partitions = info?.partitions ?? []
        if (partitions.length > 0 && partitions.every((one) => one.leader >= 0)) return
        if (info?.error !== undefined && classify(info.error).class === 'fatal') throw info.error
        await delay(systemClock, POLL_MS)
      }
    })
  }

  async deleteTopic(topic: string): Promise<void> {
    await this.#run(`delete topic ${topic}`, async (client) => {
      const link = await client.any('control')
      const { responses } = await link.request('deleteTopics', [{ name: topic }], TIMEOUT_MS)
      // It is not there, which is what was asked for.
      refuse(client, responses[0], 'UNKNOWN_TOPIC_OR_PARTITION')
    })
  }

  async #run(what: string, task: (client: Client) => Promise<void>): Promise<void> {
    const client = await this.#connector.open({ requestTimeoutMs: TIMEOUT_MS })
    const deadline = systemClock.monotonic() + TIMEOUT_MS
    const work = async (): Promise<void> => {
      for (;;) {
        try {
          return await task(client)
        } catch (error) {
          // A moment without a controller, or a broker that is starting.
          const passes = classify(error).class === 'retry' && !client.killed
          if (!passes || systemClock.monotonic() > deadline - TIMEOUT_MS + 2000) throw error
          await delay(systemClock, POLL_MS)
        }
      }
    }
    try {
      await withDeadline(systemClock, work(), TIMEOUT_MS, () => refused(what, new Error('no answer in time')))
    } catch (error) {
      throw error instanceof MillraceError ? error : refused(what, classify(error).cause)
    } finally {
      this.#connector.release(client)
    }
  }
}

function refuse(
  client: Client,
  answer: { readonly errorCode: number; readonly errorMessage: string | null | undefined } | undefined,
  harmless: string,
): void {
  if (answer === undefined || answer.errorCode === 0) return
  const refusal = client.refusal(answer.errorCode, answer.errorMessage)
  if (refusal.apiId !== harmless) throw refusal
}

function refused(what: string, cause: unknown): MillraceError {
  const why = cause instanceof Error ? cause.message : String(cause)
  return new MillraceError('BROKER_UNREACHABLE', `Kafka did not ${what}: ${why}`, { cause })
}
