/**
 * Kafka through kafkajs 2.2 (`npm i kafkajs`), the adapter behind `millrace/kafkajs`.
 *
 * `publisher.ts` sends pages, `subscription.ts` is a member of a group, `admin.ts` makes topics, `error-class.ts` judges
 * errors, `connections.ts` holds the sockets. kafkajs is loaded at the first use of any of them.
 *
 * kafkajs says nothing unless a `logger` is given. What Node itself prints once per process on newer versions, a
 * `TimeoutNegativeWarning`, comes from kafkajs' request queue and is harmless: `--disable-warning=TimeoutNegativeWarning`.
 */
import type { Broker } from '../../broker.ts'
import { KafkajsAdmin } from './admin.ts'
import { Connector } from './connections.ts'
import { settingsOf } from './options.ts'
import type { KafkajsOptions } from './options.ts'
import { KafkajsPublisher } from './publisher.ts'
import { KafkajsSubscription } from './subscription.ts'

export type { KafkajsOptions, KafkajsSasl } from './options.ts'

/**
 * Kafka as a broker of Millrace. Connects to nothing before its first use.
 *
 * @example
 * const broker = kafkajs({ brokers: ['localhost:9092'] })
 * await using relay = createRelay({ broker, postgres: pool })
 */
export function kafkajs(options: KafkajsOptions): Broker {
  const settings = settingsOf(options)
  const connector = new Connector(settings)
  return {
    admin: new KafkajsAdmin(connector),
    capabilities: {
      awaitedRevoke: false,
      dedupeWindowMs: 0,
      maxMessageBytes: settings.maxMessageBytes,
      partitions: true,
    },
    close: () => {
      connector.releaseAll()
      return Promise.resolve()
    },
    publisher: (publisherOptions) => new KafkajsPublisher(connector, settings, publisherOptions),
    subscription: (subscriptionOptions) => new KafkajsSubscription(connector, subscriptionOptions),
    system: 'kafka',
  }
}
