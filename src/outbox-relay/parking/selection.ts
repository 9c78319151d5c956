import { isUuid } from '../../core/ids.ts'
import { MillraceError } from '../../core/errors.ts'
import { laneOf } from './lane.ts'

/** Which parked events. What is given must hold together; with `all` alone it is every one. */
export interface ParkedSelection {
  readonly all?: boolean
  /** One event. */
  readonly id?: string
  /** The events of one key. */
  readonly key?: string
  readonly topic?: string
  readonly type?: string
}

/** A condition over `k` (parked_key) and `r` (parked_record), and its parameters, which go on after those that are there. */
export interface Condition {
  readonly parameters: readonly unknown[]
  /** Over the lane alone, by an index where there is one. */
  readonly lane: string
  /** Over the record. */
  readonly record: string
}

/** The condition of a selection. Throws CONFIG_INVALID for one that selects nothing in particular. */
export function conditionOf(schema: string, selection: ParkedSelection, first: number): Condition {
  const { all, id, key, topic, type } = selection
  if (all !== true && id === undefined && key === undefined && topic === undefined && type === undefined) {
    throw new MillraceError('CONFIG_INVALID', 'select parked events by id, key, topic or type, or all of them by all')
  }
  if (id !== undefined && !isUuid(id)) {
    throw new MillraceError(
      'CONFIG_INVALID',
      'the id of an event is a uuid in lower case, as the log and the list have it',
    )
  }
  const parameters: unknown[] = []
  const place = (value: unknown): string => `$${first + parameters.push(value) - 1}`
  const record: string[] = []
  const lane: string[] = []
  if (key !== undefined) {
    const at = place(laneOf({ id: '', key }))
    lane.push(`k.lane = ${at}::uuid`)
    record.push(`r.lane = ${at}::uuid`)
  }
  if (id !== undefined) record.push(`r.id = ${place(id)}::uuid`)
  if (topic !== undefined) record.push(`r.topic = ${place(topic)}::text`)
  if (type !== undefined) record.push(`r.type = ${place(type)}::text`)
  const matching = record.join(' and ') || 'true'
  if (record.length > 0) lane.push(`k.lane in (select r.lane from ${schema}.parked_record r where ${matching})`)
  return { parameters, lane: lane.join(' and ') || 'true', record: matching }
}
