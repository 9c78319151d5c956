/**
 * The broker conformance suite: what every adapter of the broker port must hold, ours and anyone's, as a list of cases
 * that any test runner can run. A case makes its own topics and groups, waits for callbacks rather than sleeping, and
 * bounds every wait. The relay and the consumer rely on nothing that is not held here.
 *
 * @example
 * for (const { name, run } of conformanceCases()) test(name, () => run(context))
 */
import { deliveryCases } from './cases/delivery.ts'
import { groupCases } from './cases/groups.ts'
import { partitionCases } from './cases/partitions.ts'
import { pausingCases } from './cases/pausing.ts'
import { publishingCases } from './cases/publishing.ts'
import type { ConformanceCase } from './conformance-case.ts'

export type { ConformanceCase, ConformanceContext, PlainMessage } from './conformance-case.ts'

/** All cases. Those whose `needs` is false for the broker's capabilities do not apply to it. */
export function conformanceCases(): ConformanceCase[] {
  return [...deliveryCases, ...publishingCases, ...partitionCases, ...pausingCases, ...groupCases]
}
