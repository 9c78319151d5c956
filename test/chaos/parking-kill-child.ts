/**
 * A relay in a process of its own that kills itself, or stands still, at a named step of parking, of releasing, and of
 * handing over shards. Its broker is the table public.sent; it refuses the keys in public.refused for good.
 *
 * Argument: the JSON of ParkingKillOptions. It prints a line of JSON for each state that it enters.
 */
import { writeSync } from 'node:fs'
import pg from 'pg'
import { silentLogger } from '../../src/core/logger.ts'
import { Signals } from '../../src/core/signals.ts'
import { createRelay } from '../../src/outbox-relay/relay.ts'
import { refusedOf } from '../support/picky-broker.ts'
import { recordingBroker } from '../support/recording-broker.ts'

export interface ParkingKillOptions {
  readonly database: string
  readonly step?: ParkingStep
}

/** Where the process ends or stands still. */
export interface ParkingStep {
  readonly signal: 'SIGKILL' | 'SIGSTOP'
  /** A point of Signals, or `before:` or `after:` and a part of a statement. */
  readonly where: string
}

const { database, step } = JSON.parse(process.argv[2] ?? '') as ParkingKillOptions
const say = (line: object): void => void writeSync(1, `${JSON.stringify(line)}\n`)
const signals = new Signals()
let come = 0

function here(): void {
  if (step === undefined || ++come > 1) return
  say({ at: step.where })
  process.kill(process.pid, step.signal)
}

const [, when, statement = ''] = /^(before|after):(.*)$/.exec(step?.where ?? '') ?? []
const pool = new pg.Pool({ connectionString: database })
pool.on('error', () => {})
pool.on('connect', (client) => {
  const query = client.query.bind(client) as (...args: unknown[]) => unknown
  const watched = (...args: unknown[]): unknown => {
    const matches = when !== undefined && String(args[0]).replaceAll(/\s+/g, ' ').includes(statement)
    if (matches && when === 'before') here()
    const answer = query(...args)
    if (!matches || when === 'before' || !(answer instanceof Promise)) return answer
    return answer.then((result: unknown) => {
      here()
      return result
    })
  }
  Object.assign(client, { query: watched })
})
if (step !== undefined && when === undefined) signals.on(step.where, here)

const storage = new pg.Pool({ connectionString: database, max: 1 })
storage.on('error', () => {})
const broker = recordingBroker()
const publisher = {
  start: async () => {},
  close: async () => {},
  async publish(batch: Parameters<typeof refusedOf>[0]) {
    const { rows } = await storage.query('select key from public.refused')
    const keys = new Set(rows.map(({ key }) => key as string))
    const unresolved = refusedOf(batch, (message) => keys.has(message.key ?? ''))
    const missing = new Set(unresolved.map(({ index }) => index))
    const stored = batch.filter((_, index) => !missing.has(index))
    await storage.query(
      `insert into public.sent (id, key, payload)
       select id, key, payload from unnest($1::uuid[], $2::text[], $3::bytea[]) with ordinality s (id, key, payload, n) order by n`,
      [stored.map(({ id }) => id), stored.map(({ key }) => key), stored.map(({ payload }) => payload)],
    )
    return unresolved
  },
}

const relay = createRelay({
  broker: { ...broker, publisher: () => publisher },
  capture: 'polling',
  leaseTtlMs: step?.signal === 'SIGSTOP' ? 2000 : 10_000,
  logger: { ...silentLogger, info: say, warn: say },
  pageSize: 20,
  postgres: pool,
  signals,
})
process.once('SIGTERM', () => {
  void relay.stop().then(() => process.exit(0))
})
await relay.start()
