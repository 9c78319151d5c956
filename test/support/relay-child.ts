/**
 * A relay in a process of its own that kills or stops itself at a named step. The steps are the points of Signals, and
 * the moments before and after a statement that holds a given text.
 *
 * Argument: the JSON of RelayChildOptions. It prints a line of JSON for each state and capture that it enters.
 */
import pg from 'pg'
import { Signals } from '../../src/core/signals.ts'
import { createBrokerFromUrl } from '../../src/daemon/broker-url.ts'
import { type CaptureMode, createRelay } from '../../src/outbox-relay/relay.ts'

export interface RelayChildOptions {
  readonly broker: string
  readonly capture: CaptureMode
  readonly database: string
  readonly leaseTtlMs?: number
  readonly pageSize?: number
  readonly step?: Step
}

/** Where the process ends or stands still, when it comes there for the `nth` time. */
export interface Step {
  readonly nth: number
  readonly signal: 'SIGKILL' | 'SIGSTOP'
  /** A point of Signals, or `before:` or `after:` and a part of a statement. */
  readonly where: string
}

const { broker, capture, database, leaseTtlMs, pageSize, step } = JSON.parse(process.argv[2] ?? '') as RelayChildOptions
const signals = new Signals()
let passed = 0

function say(line: object): void {
  process.stdout.write(`${JSON.stringify(line)}\n`)
}

function come(where: string): void {
  if (step === undefined || where !== step.where || ++passed !== step.nth) return
  process.kill(process.pid, step.signal)
}

const [when = '', statement] = /^(before|after):(.*)$/.exec(step?.where ?? '')?.slice(1) ?? []
const pool = new pg.Pool({ application_name: 'millrace-relay', connectionString: database, max: 4 })
pool.on('error', () => {})
pool.on('connect', (client) => {
  if (statement === undefined) return
  const query = client.query.bind(client) as (...args: unknown[]) => Promise<unknown>
  const watched = (...args: unknown[]): Promise<unknown> => {
    const [first] = args
    const text = typeof first === 'string' ? first : ((first as { text?: string } | undefined)?.text ?? '')
    const matches = text.replaceAll(/\s+/g, ' ').includes(statement)
    if (matches && when === 'before') come(`before:${statement}`)
    const answer = query(...args)
    // What takes a callback, or is no statement but a conversation, is no step.
    if (!matches || when === 'before' || !(answer instanceof Promise)) return answer
    return answer.then((result) => {
      come(`after:${statement}`)
      return result
    })
  }
  Object.assign(client, { query: watched })
})
if (step !== undefined && statement === undefined) signals.on(step.where, () => come(step.where))
signals.on('relay:capture', (reading: string) => say({ capture: reading }))

const logger = {
  debug() {},
  error: (fields: object, text?: string) => say({ level: 'error', ...fields, text }),
  info: (fields: object) => say(fields),
  warn: (fields: object, text?: string) => say({ level: 'warn', ...fields, text }),
} as const

const relay = createRelay({
  broker: await createBrokerFromUrl(broker),
  capture,
  logger,
  postgres: pool,
  signals,
  ...(leaseTtlMs === undefined ? {} : { leaseTtlMs }),
  ...(pageSize === undefined ? {} : { pageSize }),
})
await relay.start()
await new Promise((resolve) => process.once('SIGTERM', resolve))
await relay.stop()
await pool.end()
process.exit(0)
