import type { Logger } from '../../../core/logger.ts'
import { kafkaSettings } from '../kafka-options.ts'
import type { KafkaOptions, KafkaSasl, KafkaSettings } from '../kafka-options.ts'

/** How to prove who we are. */
export type KafkajsSasl = KafkaSasl

/** Where the brokers are and how to talk to them. */
export interface KafkajsOptions extends KafkaOptions {
  /** Where kafkajs' own log lines go, all at `debug`, for it calls routine things errors. Default: nowhere. */
  readonly logger?: Logger
  /**
   * The largest record batch, in bytes, whatever the topics allow; a message that is larger alone is poison before it is
   * sent. Set it where consumers cannot take as much as the topics can. Default: what the cluster says of each topic
   * (`max.message.bytes`, which takes the right DESCRIBE_CONFIGS), else 1048588, Kafka's own default.
   */
  readonly maxMessageBytes?: number
}

/** The options with their defaults. */
export type Settings = KafkaSettings &
  Pick<KafkajsOptions, 'logger'> & {
    /** What `maxMessageBytes` was given as; undefined leaves it to the cluster. */
    readonly batchCeilingBytes: number | undefined
  }

/** Checks the options, all problems at once, and fills in the defaults. */
export function settingsOf(options: KafkajsOptions): Settings {
  const settings = kafkaSettings('kafkajs', options, ['logger'], (check) => {
    check.satisfies('logger', (value) => typeof value === 'object' && value !== null, 'a logger')
  })
  return { ...settings, batchCeilingBytes: options.maxMessageBytes }
}
