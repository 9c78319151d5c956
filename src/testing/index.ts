/**
 * The test kit (`millrace/testing`): the broker conformance suite for whoever writes an adapter, wrappers that inject
 * faults into any broker, and private real servers. Nothing in the package outside tests and the demo uses it.
 */
export { conformanceCases } from './conformance/index.ts'
export type { ConformanceCase, ConformanceContext, PlainMessage } from './conformance/index.ts'
export { duplicating, flaky } from './faults/index.ts'
export type { DuplicatingBroker, DuplicatingOptions, FlakyBroker, FlakyOptions, Mishap } from './faults/index.ts'
export { startKafka, startNats, startPostgres } from './services/index.ts'
export type { KafkaOptions, NatsOptions, PostgresOptions, PostgresServer, PrivateServer } from './services/index.ts'
