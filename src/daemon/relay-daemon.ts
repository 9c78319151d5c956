/**
 * The life of the daemon:
 *
 *   configure (no connection yet; wrong values end here) → reach the database → start the relay → run
 *   run → first signal → drain: relay, broker, pool, within one deadline → exit 0, or 1 when the deadline passed
 *   run → the relay ended by itself → log why → release what is left → exit 1
 *   any time → second signal → exit 128 + signal at once; what was not settled is sent again later
 */
import { type CaptureMode, createRelay, type Relay, type RelayOptions } from '../outbox-relay/relay.ts'
import type { Pool } from 'pg'
import type { Broker } from '../brokers/broker.ts'
import { systemClock, withDeadline } from '../core/clock.ts'
import { MillraceError } from '../core/errors.ts'
import type { Logger } from '../core/logger.ts'
import { createBrokerFromUrl } from './broker-url.ts'
import { createDaemonLogger, type LogDestination, type LogLevel } from './daemon-logger.ts'
import { createPostgresPool, requireDatabase } from './postgres-pool.ts'
import { createRedactor, redactUrls, secretsOf } from './redact.ts'
import { reportStats } from './stats-report.ts'
import { EXIT_BY_SIGNAL, listenForStop, type StopSignals } from './stop-signals.ts'

/** What the daemon is told. What is left out takes the relay's own default. */
export interface RelayDaemonOptions {
  readonly broker: string
  readonly capture?: CaptureMode | undefined
  readonly databaseUrl?: string | undefined
  readonly leaseTtlMs?: number | undefined
  readonly logLevel?: LogLevel | undefined
  /** For tests; default: standard output. */
  readonly logTo?: LogDestination
  readonly outboxSchema?: string | undefined
  readonly pageBytes?: number | undefined
  readonly pageSize?: number | undefined
  /** Only to keep it out of the log. */
  readonly password?: string | undefined
  readonly pollIntervalMs?: number | undefined
  readonly publishTimeoutMs?: number | undefined
  readonly retentionMs?: number | undefined
  readonly shutdownTimeoutMs?: number | undefined
  readonly slot?: string | undefined
}

/** How long a drain may take by default: below the 30 s after which Kubernetes kills. */
export const SHUTDOWN_TIMEOUT_MS = 25_000

const POOL_SIZE = 4
/** The rest of the deadline is for closing the broker and the pool. */
const DRAIN_SHARE = 0.8
/** How long closing may take when there was nothing to drain. */
const CLOSE_TIMEOUT_MS = 5000
/** How much longer than it was told the relay's stop may take before it is not waited for. */
const GRACE_MS = 500

/** Runs until a signal or the relay's own end, and resolves with the exit code; rejects when it could not start. */
export async function runRelayDaemon(options: RelayDaemonOptions): Promise<number> {
  const redact = createRedactor([...secretsOf(options.databaseUrl), ...secretsOf(options.broker), options.password])
  const log = createDaemonLogger(options.logLevel ?? 'info', redact, options.logTo)
  const signals = listenForStop()
  try {
    return await Promise.race([live(options, log, signals), leaveAtOnce(log, signals)])
  } catch (error) {
    log.error({ error }, 'the relay could not start')
    throw error
  } finally {
    signals[Symbol.dispose]()
  }
}

async function live(options: RelayDaemonOptions, log: Logger, signals: StopSignals): Promise<number> {
  const pool = await createPostgresPool({
    applicationName: 'millrace-relay',
    databaseUrl: options.databaseUrl,
    max: POOL_SIZE,
    onError: (error) => log.warn({ error }, 'an idle database connection broke; the next use makes a new one'),
  })
  let broker: Broker | undefined
  let closeWithinMs = CLOSE_TIMEOUT_MS
  try {
    broker = await createBrokerFromUrl(options.broker)
    const relay = createRelay(relayOptions(options, pool, broker, log))
    const endless = relay.stopped.then(
      () => new Error('the relay stopped though nobody asked it to'),
      (error: unknown) => error,
    )
    log.info({ broker: redactUrls(options.broker), capture: options.capture ?? 'auto' }, 'starting')
    const ready = requireDatabase(pool).then(() => relay.start())
    const report = reportStats(log, () => relay.stats())
    try {
      // A relay that did not start rejects here; one that did goes on until a signal, or until it ends by itself.
      const ended = ready.then(async () => ({ error: await endless }))
      const end = await Promise.race([signals.first, ended])
      if (typeof end === 'object') {
        log.error({ error: end.error }, 'the relay ended by itself')
        return 1
      }
      const timeoutMs = options.shutdownTimeoutMs ?? SHUTDOWN_TIMEOUT_MS
      closeWithinMs = timeoutMs * (1 - DRAIN_SHARE)
      log.info({ signal: end, timeoutMs }, 'draining')
      return await drain(relay, log, timeoutMs * DRAIN_SHARE)
    } finally {
      report[Symbol.dispose]()
    }
  } finally {
    await close(pool, broker, log, closeWithinMs)
  }
}

async function drain(relay: Relay, log: Logger, timeoutMs: number): Promise<number> {
  try {
    await withDeadline(systemClock, relay.stop({ timeoutMs }), timeoutMs + GRACE_MS, () =>
      overdue('the relay', timeoutMs),
    )
    log.info({ event: 'drained' }, 'drained')
    return 0
  } catch (error) {
    log.error({ error }, 'the drain did not end well; what was not settled is sent again later')
    return 1
  }
}

async function close(pool: Pool, broker: Broker | undefined, log: Logger, timeoutMs: number): Promise<void> {
  try {
    const closing = Promise.allSettled([broker?.close(), pool.end()])
    await withDeadline(systemClock, closing, timeoutMs, () => overdue('closing the connections', timeoutMs))
  } catch (error) {
    // The work is settled; only sockets are left, and they end with the process.
    log.warn({ error }, 'connections did not close in time')
  }
}

function overdue(what: string, timeoutMs: number): MillraceError {
  return new MillraceError('SHUTDOWN_TIMEOUT', `${what} took longer than ${timeoutMs} ms. Raise --shutdown-timeout-ms.`)
}

function relayOptions(options: RelayDaemonOptions, postgres: Pool, broker: Broker, logger: Logger): RelayOptions {
  const { capture, leaseTtlMs, outboxSchema, pageBytes, pageSize, pollIntervalMs, publishTimeoutMs } = options
  const { retentionMs, slot } = options
  return {
    broker,
    logger,
    postgres,
    ...(outboxSchema === undefined ? {} : { schemas: { outbox: outboxSchema } }),
    ...given({ capture, leaseTtlMs, pageBytes, pageSize, pollIntervalMs, publishTimeoutMs, retentionMs, slot }),
  }
}

/** Without what nobody gave, so that the relay's own defaults hold. */
function given<T extends object>(options: T): { [Name in keyof T]?: Exclude<T[Name], undefined> } {
  return Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined)) as never
}

async function leaveAtOnce(log: Logger, signals: StopSignals): Promise<number> {
  const signal = await signals.second
  log.warn({ signal }, 'second signal: leaving at once; what was not settled is sent again later')
  return EXIT_BY_SIGNAL[signal]
}
