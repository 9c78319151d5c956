import type { Logger } from '../../../core/logger.ts'
import { kafkaSettings } from '../kafka-options.ts'
import type { KafkaOptions, KafkaSasl, KafkaSettings } from '../kafka-options.ts'

/** How to prove who we are. */
export type KafkajsSasl = KafkaSasl

/** Where the brokers are and how to talk to them. */
export interface KafkajsOptions extends KafkaOptions {
  /** Where kafkajs' own log lines go, all at `debug`, for it calls routine things errors. Default: nowhere. */
  readonly logger?: Logger
}

/** The options with their defaults. */
export type Settings = KafkaSettings & Pick<KafkajsOptions, 'logger'>

/** Checks the options, all problems at once, and fills in the defaults. */
export function settingsOf(options: KafkajsOptions): Settings {
  return kafkaSettings('kafkajs', options, ['logger'], (check) => {
    check.satisfies('logger', (value) => typeof value === 'object' && value !== null, 'a logger')
  })
}
