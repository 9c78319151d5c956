/**
 * Stations 2 to 4 of an event's journey: capture reads committed records, dispatch publishes them, and the checkpoint
 * says how far; what the broker refuses for good is parked (parking/). A relay (relay.ts) lives through terms (term.ts); in each it owns the shards by a lease (lease.ts),
 * begins from the checkpoint's row (checkpoint-log.ts), and reads by a capture (capture/).
 */
export { type Relay, type RelayOptions, type RelayState, type RelayStats, createRelay } from './relay.ts'
export { type CheckpointGroup, type CheckpointReport, reportCheckpoints } from './checkpoint-report.ts'
export { type ReAnchorOptions, type ReAnchorReport, reAnchor } from './re-anchor.ts'
export {
  type ListOptions as ParkedListOptions,
  type ParkedCount,
  type ParkedEvent,
  type ParkedEventDetail,
  type ParkedSelection,
  type Parking,
  type ParkingOptions,
  createParking,
} from './parking/index.ts'
