/**
 * Millrace: events from a Postgres transaction to a handler's Postgres transaction, once in effect, in order per key.
 *
 * `createOutbox` appends them, `createRelay` carries them to a broker, `createParking` sees to those that the broker
 * refuses, `createConsumer` applies them; `migrate` makes the tables. The brokers are subpaths of their own (`millrace/kafkajs`, `millrace/nats`, `millrace/memory`), so that nobody
 * loads a client that is not used.
 */
export { createConsumer } from './consumer/index.ts'
export type {
  Consumer,
  ConsumerOptions,
  ConsumerStats,
  HandledMessage,
  Handler,
  HandlerContext,
  RetryOptions,
  TransactionOf,
} from './consumer/index.ts'
export { ERROR_CODES, isMillraceError, MillraceError } from './core/errors.ts'
export type { ErrorCode, MillraceErrorOptions } from './core/errors.ts'
export type { Lifecycle, StopOptions } from './core/lifecycle.ts'
export type { Logger } from './core/logger.ts'
export type { Headers, Message, OutgoingMessage } from './core/message.ts'
export { HEADER, HEADER_PREFIX } from './core/wire.ts'
export type { Broker, Capabilities } from './brokers/broker.ts'
export { createParking, createRelay, reAnchor, reportCheckpoints } from './outbox-relay/index.ts'
export type { CheckpointGroup, CheckpointReport, ReAnchorOptions, ReAnchorReport } from './outbox-relay/index.ts'
export type {
  ParkedCount,
  ParkedEvent,
  ParkedEventDetail,
  ParkedListOptions,
  ParkedSelection,
  Parking,
  ParkingOptions,
  Relay,
  RelayOptions,
  RelayState,
  RelayStats,
} from './outbox-relay/index.ts'
export { migrate, migrationSql } from './postgres/index.ts'
export type {
  MigrateOptions,
  MigrationReport,
  PgClient,
  PgPool,
  SchemaNames,
  Sql,
  SqlResult,
  SqlTransaction,
  Transaction,
} from './postgres/index.ts'
export { createOutbox } from './producer/index.ts'
export type {
  AnyEvents,
  AppendResult,
  EventCatalog,
  InputsOf,
  Outbox,
  OutboxEvent,
  OutboxOptions,
  StandardSchema,
} from './producer/index.ts'
