/**
 * Real servers for tests, for the demo and for whoever tries Millrace: PostgreSQL, Kafka and NATS, each private, on
 * 127.0.0.1, in a temporary folder, and gone with the process that started it, however that process ends.
 *
 * `startPostgres`, `startKafka` and `startNats` give a server that a test may stop, kill and start again; the resolver
 * finds one of each for a whole test run: by URL, by Docker, by the local toolchain, in that order.
 */
export { startKafka } from './kafka.ts'
export type { KafkaOptions } from './kafka.ts'
export { startKafkaCluster } from './kafka-cluster.ts'
export type { KafkaCluster, KafkaClusterNode, KafkaClusterOptions } from './kafka-cluster.ts'
export { startNats } from './nats.ts'
export type { NatsOptions } from './nats.ts'
export { startPostgres } from './postgres.ts'
export type { PostgresOptions, PostgresServer, StopMode } from './postgres.ts'
export { backUp } from './postgres-restore.ts'
export type { PostgresBackup, RestorePoint } from './postgres-restore.ts'
export { startStandby } from './postgres-standby.ts'
export type { PostgresStandby, StandbyOptions } from './postgres-standby.ts'
export type { PostgresVersion } from './postgres-binaries.ts'
export type { PrivateServer } from './private-server.ts'
export { remedyFor } from './resolver.ts'
export type { ServiceName } from './resolver.ts'
export { startServices } from './services.ts'
export type { ServiceAddresses, Services, ServicesOptions } from './services.ts'
