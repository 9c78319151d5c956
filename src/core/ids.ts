import { v7 } from 'uuid'

const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/

/**
 * A new uuid v7 (RFC 9562): 48 bits of milliseconds first, monotonic within the process; of a given moment, for whoever
 * owns the clock, it is random within the millisecond.
 */
export function newId(timeMs?: number): string {
  return timeMs === undefined ? v7() : v7({ msecs: timeMs })
}

/** True for a uuid in its canonical lower-case form, of any version. */
export function isUuid(id: string): boolean {
  return UUID.test(id)
}

/** The time inside a uuid v7, milliseconds since the epoch; undefined for any other id. */
export function timeOfId(id: string): number | undefined {
  if (id.charCodeAt(14) !== 0x37 || !isUuid(id)) return undefined
  return parseInt(id.slice(0, 8) + id.slice(9, 13), 16)
}
