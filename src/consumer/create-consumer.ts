import { systemClock } from '../core/clock.ts'
import { silentLogger } from '../core/logger.ts'
import { OptionCheck } from '../core/options.ts'
import { Signals } from '../core/signals.ts'
import { Inbox } from '../inbox/index.ts'
import { resolveSchemas } from '../postgres/schemas.ts'
import type { PgClient, PgPool } from '../postgres/sql.ts'
import { GroupConsumer, type Consumer } from './consumer.ts'
import type { ConsumerOptions, Handler } from './consumer-options.ts'

const OPTIONS = [
  'broker',
  'clock',
  'commitEvery',
  'commitIntervalMs',
  'concurrency',
  'group',
  'groupSize',
  'handle',
  'inbox',
  'logger',
  'maxInFlight',
  'maxInFlightBytes',
  'onError',
  'retry',
  'revokeTimeoutMs',
  'schemas',
  'sessionTimeoutMs',
  'signals',
  'startFrom',
  'topics',
] as const satisfies readonly (keyof ConsumerOptions)[]

/**
 * Makes a consumer. It connects to nothing before `start`.
 *
 * @example
 * const consumer = createConsumer({
 *   broker, group: 'billing', inbox: { postgres: pool }, topics: ['orders'],
 *   handle: async (message, { tx }) => {
 *     const order = message.json<Order>()
 *     await tx.query('insert into invoice (order_id, total) values ($1, $2)', [order.id, order.total])
 *   },
 * })
 * await consumer.start()
 * @throws CONFIG_INVALID with every problem of the options
 */
export function createConsumer<Pool extends PgPool>(options: ConsumerOptions<Pool>): Consumer {
  validate(options)
  return new GroupConsumer({
    broker: options.broker,
    clock: options.clock ?? systemClock,
    commitEvery: options.commitEvery ?? 1000,
    commitIntervalMs: options.commitIntervalMs ?? 1000,
    concurrency: options.concurrency ?? 4,
    group: options.group,
    groupSize: options.groupSize ?? 64,
    // The pool gives out exactly the clients that the handler is declared to take.
    handle: options.handle as Handler<PgClient>,
    inbox: new Inbox({ consumer: options.group, schema: resolveSchemas(options.schemas).inbox }),
    logger: options.logger ?? silentLogger,
    maxInFlight: options.maxInFlight ?? 2048,
    maxInFlightBytes: options.maxInFlightBytes ?? 67_108_864,
    onError: options.onError,
    pool: options.inbox.postgres,
    retry: {
      attempts: options.retry?.attempts ?? 10,
      maxDelayMs: options.retry?.maxDelayMs ?? 30_000,
      minDelayMs: options.retry?.minDelayMs ?? 100,
    },
    revokeTimeoutMs: options.revokeTimeoutMs ?? 5000,
    sessionTimeoutMs: options.sessionTimeoutMs,
    signals: options.signals ?? new Signals(),
    startFrom: options.startFrom ?? 'earliest',
    topics: options.topics,
  })
}

function validate(options: ConsumerOptions<PgPool>): void {
  const check = new OptionCheck('createConsumer', options, OPTIONS)
  check.required('broker', "a broker, such as kafkajs({ brokers: ['127.0.0.1:9092'] })")
  check.integer('commitEvery', 1, 1_000_000)
  check.integer('commitIntervalMs', 1, 3_600_000)
  check.integer('concurrency', 1, 1000)
  check.required('group', 'the name of the consumer group')
  check.satisfies('group', isGroup, 'a name of 1 to 200 bytes without NUL')
  check.integer('groupSize', 1, 10_000)
  check.required('handle', 'a function of the message and its context')
  check.satisfies('handle', isFunction, 'a function of the message and its context')
  check.required('inbox', '{ postgres: pool }')
  check.satisfies('inbox', hasPool, '{ postgres: pool } with a pg.Pool')
  check.integer('maxInFlight', 1, 10_000_000)
  check.integer('maxInFlightBytes', 1, Number.MAX_SAFE_INTEGER)
  check.satisfies('onError', isFunction, 'a function')
  check.satisfies('retry', isRetry, '{ attempts?, maxDelayMs?, minDelayMs? }, whole numbers of at least 1')
  check.integer('revokeTimeoutMs', 0, 3_600_000)
  check.integer('sessionTimeoutMs', 1, 3_600_000)
  check.satisfies('startFrom', (value) => value === 'earliest' || value === 'latest', "'earliest' or 'latest'")
  check.required('topics', 'the topics to consume')
  check.satisfies('topics', isTopics, 'at least one topic name')
  check.done()
}

const RETRY_OPTIONS = ['attempts', 'maxDelayMs', 'minDelayMs']

function isFunction(value: unknown): boolean {
  return typeof value === 'function'
}

function isGroup(value: unknown): boolean {
  return typeof value === 'string' && value !== '' && Buffer.byteLength(value) <= 200 && !value.includes('\0')
}

function hasPool(value: unknown): boolean {
  const pool = (value as { postgres?: Partial<PgPool> } | null)?.postgres
  return typeof pool?.query === 'function' && typeof pool.connect === 'function'
}

function isRetry(value: unknown): boolean {
  if (typeof value !== 'object' || value === null) return false
  return Object.entries(value).every(
    ([name, number]) =>
      RETRY_OPTIONS.includes(name) && (number === undefined || (Number.isSafeInteger(number) && number >= 1)),
  )
}

function isTopics(value: unknown): boolean {
  return Array.isArray(value) && value.length > 0 && value.every((topic) => typeof topic === 'string' && topic !== '')
}
