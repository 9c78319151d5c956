import type { Admin } from 'kafkajs'
import type { AskTopics, TopicAnswer } from '../topic-limits.ts'
import type { Connector } from './connections.ts'
import { innermost } from './error-class.ts'

const TIMEOUT_MS = 3_000
const TOPIC = 2
const SETTING = 'max.message.bytes'
const DENIED = new Set(['CLUSTER_AUTHORIZATION_FAILED', 'TOPIC_AUTHORIZATION_FAILED'])
const UNKNOWN_TOPIC = 'UNKNOWN_TOPIC_OR_PARTITION'

/** Asks the cluster for the topics' largest batch, over a connection that ends with the question. */
export function askTopicsOf(connector: Connector): AskTopics {
  return async (topics) => {
    const retry = { initialRetryTime: 50, retries: 0 }
    const connections = await connector.open({ requestTimeoutMs: TIMEOUT_MS, retry })
    const admin = connections.kafka.admin({ retry })
    try {
      await admin.connect()
      return await describe(admin, topics)
    } finally {
      connector.release(connections)
    }
  }
}

/** All topics in one request; where kafkajs gives one topic's error for all of them, each by itself. */
async function describe(admin: Admin, topics: readonly string[]): Promise<ReadonlyMap<string, TopicAnswer>> {
  try {
    const { resources } = await admin.describeConfigs({
      includeSynonyms: false,
      resources: topics.map((name) => ({ configNames: [SETTING], name, type: TOPIC })),
    })
    return new Map(
      resources.flatMap(({ configEntries, resourceName }) => {
        const bytes = Number(configEntries.find((one) => one.configName === SETTING)?.configValue)
        return bytes > 0 ? [[resourceName, bytes] as const] : []
      }),
    )
  } catch (error) {
    if (topics.length > 1) {
      const single = await Promise.all(topics.map((topic) => describe(admin, [topic])))
      return new Map(single.flatMap((one) => [...one]))
    }
    const { type } = innermost(error) as { readonly type?: string }
    const [topic] = topics
    if (topic === undefined || type === undefined) throw error
    if (type === UNKNOWN_TOPIC) return new Map([[topic, 'missing']])
    if (DENIED.has(type)) return new Map([[topic, 'hidden']])
    throw error
  }
}
