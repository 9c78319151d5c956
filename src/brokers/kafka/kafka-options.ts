import type { ConnectionOptions } from 'node:tls'
import { OptionCheck } from '../../core/options.ts'

/** How to prove who we are. */
export type KafkaSasl =
  | {
      readonly mechanism: 'plain' | 'scram-sha-256' | 'scram-sha-512'
      readonly username: string
      readonly password: string
    }
  | { readonly mechanism: 'oauthbearer'; readonly oauthBearerProvider: () => Promise<{ readonly value: string }> }

/** Where the brokers are and how to talk to them, whatever the client. */
export interface KafkaOptions {
  /** The brokers to ask first, `host:port` each, as a list or separated by commas; they name the rest. */
  readonly brokers: readonly string[] | string
  /** The name under which the brokers log and throttle this client. Default: `millrace`. */
  readonly clientId?: string
  /** How long one attempt to connect may take, milliseconds. Raise it across slow networks. Default: 3000. */
  readonly connectTimeoutMs?: number
  /**
   * The largest record batch, in bytes, whatever the topics allow; a message that is larger alone is poison before it is
   * sent. Set it where consumers cannot take as much as the topics can. Default: what the cluster says of each topic
   * (`max.message.bytes`, which takes the right DESCRIBE_CONFIGS), else 1048588, Kafka's own default.
   */
  readonly maxMessageBytes?: number
  /** Credentials. Default: none. */
  readonly sasl?: KafkaSasl
  /** `true`, or options of `node:tls`; certificates are verified unless they say otherwise. Default: no TLS. */
  readonly ssl?: boolean | ConnectionOptions
  /**
   * How long a topic may be missing before its messages are poison (parked) instead of retried, milliseconds. The page
   * that holds them waits meanwhile, and what comes after it. Raise it where topics are made some time after their first
   * message, and nobody is to replay it. Default: 10000.
   */
  readonly unknownTopicMs?: number
}

/** The options with their defaults. */
export interface KafkaSettings extends Omit<KafkaOptions, 'brokers'> {
  /** What `maxMessageBytes` was given as; undefined leaves it to the cluster. */
  readonly batchCeilingBytes: number | undefined
  readonly brokers: string[]
  readonly clientId: string
  readonly connectTimeoutMs: number
  readonly maxMessageBytes: number
  readonly unknownTopicMs: number
}

const KNOWN = [
  'brokers',
  'clientId',
  'connectTimeoutMs',
  'maxMessageBytes',
  'sasl',
  'ssl',
  'unknownTopicMs',
] satisfies (keyof KafkaOptions)[]

/**
 * Checks the options, all problems at once, and fills in the defaults. `more` checks those that only the client named
 * `subject` has.
 */
export function kafkaSettings<O extends KafkaOptions>(
  subject: string,
  options: O,
  known: readonly (keyof O & string)[] = [],
  more: (check: OptionCheck) => void = () => {},
): O & KafkaSettings {
  const check = new OptionCheck(subject, options, [...KNOWN, ...known].toSorted())
  const brokers = brokerList(options?.brokers)
  check.required('brokers', "host:port, such as ['localhost:9092']")
  check.satisfies('brokers', () => brokers.length > 0 && brokers.every(isAddress), 'one or more host:port')
  check.satisfies('clientId', (value) => typeof value === 'string' && value !== '', 'a name')
  check.integer('connectTimeoutMs', 1, 600_000)
  check.integer('maxMessageBytes', 1024, 100 * 1024 * 1024)
  check.satisfies('sasl', (value) => typeof value === 'object' && value !== null && 'mechanism' in value, 'a mechanism')
  check.satisfies(
    'ssl',
    (value) => typeof value === 'boolean' || (typeof value === 'object' && value !== null),
    'true, or options of node:tls',
  )
  check.integer('unknownTopicMs', 0, 86_400_000)
  more(check)
  check.done()
  return {
    ...options,
    batchCeilingBytes: options.maxMessageBytes,
    brokers,
    clientId: options.clientId ?? 'millrace',
    connectTimeoutMs: options.connectTimeoutMs ?? 3000,
    maxMessageBytes: options.maxMessageBytes ?? 1_048_588,
    unknownTopicMs: options.unknownTopicMs ?? 10_000,
  }
}

function brokerList(brokers: unknown): string[] {
  const list = typeof brokers === 'string' ? brokers.split(',') : Array.isArray(brokers) ? (brokers as unknown[]) : []
  return list
    .map((one) => (typeof one === 'string' ? one.trim() : ''))
    .filter((one, _, all) => one !== '' || all.length > 1)
}

function isAddress(text: string): boolean {
  const [host, port, ...rest] = text.split(':')
  return host !== undefined && host !== '' && rest.length === 0 && /^\d{1,5}$/.test(port ?? '')
}
