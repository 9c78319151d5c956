/**
 * Faults for tests: wrappers around a broker, of whichever adapter, that do what brokers and networks do on bad days.
 * `duplicating` delivers some messages twice, for consumers; `flaky` refuses publishes or loses their answers, for
 * relays. Both are deterministic where they can be, and count what they did.
 */
export { duplicating } from './duplicating.ts'
export type { DuplicatingBroker, DuplicatingOptions } from './duplicating.ts'
export { flaky } from './flaky.ts'
export type { FlakyBroker, FlakyOptions, Mishap } from './flaky.ts'
