/**
 * Kafka. One folder per client package (`kafkajs`), each an adapter of the broker port with the same file names; beside
 * them what any Kafka adapter needs whatever its client: what a record weighs on the
 * wire, and how a batch is cut so that no record batch exceeds the broker's limit.
 */
export { planParts } from './batch-plan.ts'
export type { PlanLimits } from './batch-plan.ts'
export { BATCH_OVERHEAD_BYTES, ProduceRecord } from './produce-record.ts'
