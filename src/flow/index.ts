/**
 * Flow: who may run next, how much may be held, how long to wait. The parts of back-pressure that the relay and the
 * consumer share. Everything here is pure: no I/O, no timers, no clock of its own; callers pass the time in and act on
 * what comes out, so that a test can drive a million steps without waiting.
 */
export { backoffMs, type Backoff } from './backoff.ts'
export { IntakeLimit, type IntakeAccount, type IntakeBounds } from './intake-limit.ts'
export { KeyLanes, type Lane, type LaneSource, type Linked } from './key-lanes.ts'
export { Watermark } from './watermark.ts'
