/**
 * Kafka through @platformatic/kafka 2.12 or newer (`npm i @platformatic/kafka`), the adapter behind `millrace/platformatic`,
 * for Kafka 3.5 or newer. It takes a fraction of the processor time that kafkajs takes, and awaits a revoke.
 *
 * `publisher.ts` sends pages through a `producer-session.ts`, `subscription.ts` is a member of a group (`membership.ts`,
 * `fetcher.ts`), `admin.ts` makes topics, `error-class.ts` judges errors, `client.ts` holds the connections. Of the
 * package its connections and its requests are used; it is loaded at the first use of any of them.
 */
import type { Broker } from '../../broker.ts'
import { PlatformaticAdmin } from './admin.ts'
import { Connector } from './connector.ts'
import { settingsOf } from './options.ts'
import type { PlatformaticOptions } from './options.ts'
import { PlatformaticPublisher } from './publisher.ts'
import { PlatformaticSubscription } from './subscription.ts'

export type { PlatformaticOptions, PlatformaticSasl } from './options.ts'

/**
 * Kafka as a broker of Millrace. Connects to nothing before its first use.
 *
 * @example
 * const broker = platformatic({ brokers: ['localhost:9092'] })
 * await using relay = createRelay({ broker, postgres: pool })
 */
export function platformatic(options: PlatformaticOptions): Broker {
  const settings = settingsOf(options)
  const connector = new Connector(settings)
  return {
    admin: new PlatformaticAdmin(connector),
    capabilities: {
      awaitedRevoke: true,
      dedupeWindowMs: 0,
      maxMessageBytes: settings.maxMessageBytes,
      partitions: true,
    },
    close: () => {
      connector.releaseAll()
      return Promise.resolve()
    },
    publisher: (publisherOptions) => new PlatformaticPublisher(connector, settings, publisherOptions),
    subscription: (subscriptionOptions) => new PlatformaticSubscription(connector, subscriptionOptions),
    system: 'kafka',
  }
}
