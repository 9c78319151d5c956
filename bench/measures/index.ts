/**
 * The measures, in the order in which they run: those that change the shared records come last. Each is one file, and
 * stands on the stage (`bench/stage`), which makes servers and records and runs children (`bench/children`).
 */
import type { Measure } from '../stage/measure.ts'
import { append } from './append.ts'
import { deadRows } from './dead-rows.ts'
import { fsync } from './fsync.ts'
import { idle } from './idle.ts'
import { inbox } from './inbox.ts'
import { jetstream } from './jetstream.ts'
import { kafka } from './kafka.ts'
import { keys } from './keys.ts'
import { latency } from './latency.ts'
import { memory } from './memory.ts'
import { oneRow } from './one-row.ts'
import { polling } from './polling.ts'
import { traces } from './traces.ts'
import { waiting } from './waiting.ts'
import { wal } from './wal.ts'

/** All of them. */
export const measures: readonly Measure[] = [
  wal,
  polling,
  jetstream,
  fsync,
  kafka,
  keys,
  oneRow,
  latency,
  append,
  memory,
  idle,
  inbox,
  traces,
  waiting,
  deadRows,
]
