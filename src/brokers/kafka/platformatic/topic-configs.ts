import type { AskTopics, TopicAnswer } from '../topic-limits.ts'
import type { Client } from './client.ts'
import { classify } from './error-class.ts'

const TOPIC = 2
const SETTING = 'max.message.bytes'

/** Asks the cluster for the topics' largest batch, over the publisher's own client. */
export function askTopicsOf(clientOf: () => Client | undefined): AskTopics {
  return async (topics) => {
    const client = clientOf()
    const answers = new Map<string, TopicAnswer>()
    if (client === undefined) return answers
    const link = await client.any('control')
    const resources = topics.map((resourceName) => ({
      configurationKeys: [SETTING],
      resourceName,
      resourceType: TOPIC as 2,
    }))
    const { results } = await link.request('describeConfigs', resources, false, false)
    for (const { configs, errorCode, resourceName } of results) {
      const bytes = Number(configs.find((one) => one.name === SETTING)?.value)
      const verdict = errorCode === 0 ? undefined : classify(client.refusal(errorCode))
      if (verdict === undefined && bytes > 0) answers.set(resourceName, bytes)
      else if (verdict?.unknownTopic === true) answers.set(resourceName, 'missing')
      else if (verdict?.class === 'fatal') answers.set(resourceName, 'hidden')
    }
    return answers
  }
}
