/**
 * Parking: an event that can never be published is set aside with every later one of its key, and the relay goes on.
 * parking-owner.ts is what the owner of a shard does, with the states and the proof in its head; crash-counter.ts finds
 * the event that keeps killing the relay; parking.ts is what an operator sees: list, show, replay, discard. The tables
 * are parked_key (one row a parked key), parked_record, parked_discard, crash_start and crash_suspect.
 */
export { CrashCounter } from './crash-counter.ts'
export { ParkingOwner } from './parking-owner.ts'
export {
  type ListOptions,
  type ParkedCount,
  type ParkedEvent,
  type ParkedEventDetail,
  type ParkedSelection,
  type Parking,
  type ParkingOptions,
  createParking,
} from './parking.ts'
