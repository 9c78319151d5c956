import { kafkaSettings } from '../kafka-options.ts'
import type { KafkaOptions, KafkaSasl, KafkaSettings } from '../kafka-options.ts'

/** How to prove who we are. */
export type PlatformaticSasl = KafkaSasl

/** Where the brokers are and how to talk to them. */
export interface PlatformaticOptions extends KafkaOptions {}

/** The options with their defaults. */
export type Settings = KafkaSettings

/** Checks the options, all problems at once, and fills in the defaults. */
export function settingsOf(options: PlatformaticOptions): Settings {
  return kafkaSettings('platformatic', options)
}
