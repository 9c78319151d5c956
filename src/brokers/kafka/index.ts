/**
 * Kafka. One folder per client package (`kafkajs`, `platformatic`), each an adapter of the broker port; beside them what
 * any Kafka adapter needs whatever its client: its options, what a record weighs on the wire, how a batch is cut so that
 * no record batch exceeds the broker's limit, what a protocol error means for a message, what a member owns.
 */
export { planParts } from './batch-plan.ts'
export type { PlanLimits } from './batch-plan.ts'
export { BATCH_OVERHEAD_BYTES, ProduceRecord } from './produce-record.ts'
