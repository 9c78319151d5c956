import { hostname } from 'node:os'
import type { Broker, Publisher } from '../brokers/broker.ts'
import { type Clock, delay, systemClock, withDeadline } from '../core/clock.ts'
import { MillraceError, isMillraceError } from '../core/errors.ts'
import { type Lifecycle, STOP_TIMEOUT_MS, type StopOptions } from '../core/lifecycle.ts'
import { type Logger, silentLogger } from '../core/logger.ts'
import { OptionCheck } from '../core/options.ts'
import { Signals } from '../core/signals.ts'
import { backoffMs } from '../flow/backoff.ts'
import { requireSchema } from '../postgres/migrator.ts'
import { resolveSchemas } from '../postgres/schemas.ts'
import type { PgPool, SchemaNames } from '../postgres/sql.ts'
import { outliveLostClients } from '../postgres/take-client.ts'
import { CrashCounter } from './parking/index.ts'
import type { StreamMemory } from './relay-stream.ts'
import { MIGRATED_RING, Retention, type RetentionStats, keepRetention, longestRetentionMs } from './retention/index.ts'
import { type CaptureMode, type TermOptions, runTerm } from './term.ts'
import { tracedPublisher } from './traced-publisher.ts'

export type { CaptureMode } from './term.ts'

/** How a relay is made. Only `broker` and `postgres` are required. */
export interface RelayOptions {
  /** Where the events go. */
  readonly broker: Broker
  /**
   * How committed records are read. `replication` streams the write-ahead log through a logical replication slot: lowest
   * latency and load, one relay at work and the others standing by; it needs `wal_level = logical` and a role that may
   * replicate, and the server keeps its log for a relay that is down. `polling` reads the table: no right beyond the
   * outbox's tables, and relays share the shards. `auto` streams where that is possible, else polls, and logs why. A
   * slot that is lost costs nothing: the relay polls until a new one is made. Default: 'auto'.
   */
  readonly capture?: CaptureMode
  /** Time and randomness; a test gives its own. Default: the machine's. */
  readonly clock?: Clock
  /**
   * How long the relay owns the shards without renewing, milliseconds. It renews every third of it. Lower it to be
   * replaced sooner when the process stands still or its machine is cut off; a killed process is replaced at once
   * either way. Too low, and a busy database costs the ownership. Default: 10000.
   */
  readonly leaseTtlMs?: number
  /** Where it tells what it does. Default: nowhere. */
  readonly logger?: Logger
  /** Called with every error that the relay survives, and with the one that ends it. Default: nothing. */
  readonly onError?: (error: Error) => void
  /**
   * The size of a page, bytes. Two pages are in memory at most, or four while it streams. A single larger event still is a
   * page. Default: 4 MiB.
   */
  readonly pageBytes?: number
  /**
   * The size of a page, events. Larger pages make larger broker batches, hold more memory and repeat more after a crash.
   * Default: 500.
   */
  readonly pageSize?: number
  /**
   * The longest wait between two looks at an idle outbox, milliseconds. The first look after an event comes 2 ms later,
   * and each empty one doubles the wait. Lower it for the latency of single events, raise it for idle CPU: a look costs
   * the database one trivial query and the relay about half a millisecond of CPU. Only for polling. Default: 100.
   */
  readonly pollIntervalMs?: number
  /**
   * The outbox's database: the primary itself, not a standby and not a transaction pooler. The relay keeps two connections
   * and takes a third now and then, so the pool's max is 3 or more; a stream is a connection beside the pool.
   */
  readonly postgres: PgPool
  /** How long one publish may stay unanswered before it is sent again, milliseconds. Default: 10000. */
  readonly publishTimeoutMs?: number
  /**
   * How long published events stay in the outbox, milliseconds, counted from the end of the four hours in which their
   * transaction began. Raise it to be able to feed a broker again that lost what it had acknowledged; it costs the space.
   * At most 27 hours; 0: this relay reclaims nothing and leaves it to another. See docs/retention.md. Default: 24 hours.
   */
  readonly retentionMs?: number
  /** The names of the schemas. Default: outbox and inbox. */
  readonly schemas?: Partial<SchemaNames>
  /** Observable points for tests. Default: nobody listens. */
  readonly signals?: Signals
  /**
   * The name of the replication slot: 1 to 63 lower-case letters, digits and underscores. Give one when a policy asks for
   * it; slots are the whole server's. Default: `millrace_<database>_<outbox schema>`.
   */
  readonly slot?: string
}

/** What a relay is doing. `recovering`: it lost the database or the lease and is coming back. */
export type RelayState = 'idle' | 'standby' | 'relaying' | 'recovering' | 'stopped'

/** What a relay has done since it started. */
export interface RelayStats {
  readonly state: RelayState
  /** How it reads now; undefined before it works. */
  readonly capture: 'polling' | 'replication' | undefined
  /** How often it had to leave the stream and poll because slot or publication did not fit the checkpoint. */
  readonly fallbacks: number
  /** The highest epoch of its shards' leases while relaying; '' otherwise. */
  readonly epoch: string
  /** The shards it relays now. */
  readonly shards: readonly number[]
  /** Events stored by the broker. */
  readonly published: number
  /** Bytes of them. */
  readonly publishedBytes: number
  /** Pages of them. */
  readonly pages: number
  /**
   * What is parked now in the shards it relays: keys (and events without one), and events altogether. Of more than a
   * million events found at the start the rest is not counted.
   */
  readonly parked: { readonly keys: number; readonly records: number }
  /** Events that had to be sent again. */
  readonly resent: number
  /** Terms that ended with an error. */
  readonly failures: number
  /** Events sent again so late that the broker may have stored them twice: past its duplicate window. */
  readonly lateRetries: number
  /** What it reclaimed of the outbox, and what it had to keep. */
  readonly retention: RetentionStats
}

/** A relay. */
export type Relay = Lifecycle<RelayStats>

const DEFAULTS = Object.freeze({
  backoff: { minDelayMs: 50, maxDelayMs: 5000 },
  leaseTtlMs: 10_000,
  pageBytes: 4 * 1024 * 1024,
  pageSize: 500,
  pollIntervalMs: 100,
  publishTimeoutMs: 10_000,
  retentionMs: 24 * 3_600_000,
})

/** How often a relay looks for what is past the retention, at the latest. */
const SWEEP_INTERVAL_MS = 60_000

const LONGEST_RETENTION_MS = longestRetentionMs(MIGRATED_RING.buckets, MIGRATED_RING.windowSeconds)

const KNOWN: readonly (keyof RelayOptions)[] = [
  'broker',
  'capture',
  'clock',
  'leaseTtlMs',
  'logger',
  'onError',
  'pageBytes',
  'pageSize',
  'pollIntervalMs',
  'postgres',
  'publishTimeoutMs',
  'retentionMs',
  'schemas',
  'signals',
  'slot',
]

/**
 * Makes a relay: it carries committed outbox records to the broker, in order per key, and forgets none. It does nothing
 * before `start`. Several may run against one outbox: they share its
 * shards, and each key is one relay's at a time.
 *
 * @throws MillraceError CONFIG_INVALID with every problem of the options.
 * @example
 * const relay = createRelay({ postgres: pool, broker: kafkajs({ brokers: ['127.0.0.1:9092'] }) })
 * await relay.start()
 */
export function createRelay(options: RelayOptions): Relay {
  const check = new OptionCheck('createRelay', options, KNOWN)
  check.required('broker', "a broker, such as kafkajs({ brokers }) from 'millrace/kafkajs'")
  check.required('postgres', 'a pg Pool')
  check.satisfies('postgres', (pool) => typeof (pool as PgPool).connect === 'function', 'a pg Pool')
  check.satisfies('capture', (capture) => isCaptureMode(capture), "'auto', 'polling' or 'replication'")
  check.satisfies('slot', (slot) => /^[a-z0-9_]{1,63}$/.test(String(slot)), '1 to 63 of a-z, 0-9 and _')
  check.integer('leaseTtlMs', 1000, 3_600_000)
  check.integer('pageBytes', 1024, 256 * 1024 * 1024)
  check.integer('pageSize', 1, 100_000)
  check.integer('pollIntervalMs', 1, 60_000)
  check.integer('publishTimeoutMs', 100, 600_000)
  check.integer('retentionMs', 0, LONGEST_RETENTION_MS)
  check.done()
  return new OutboxRelay(options)
}

function isCaptureMode(capture: unknown): capture is CaptureMode {
  return capture === 'auto' || capture === 'polling' || capture === 'replication'
}

class OutboxRelay implements Relay {
  readonly stopped: Promise<void>
  readonly #clock: Clock
  readonly #logger: Logger
  readonly #options: RelayOptions
  readonly #publisher: Publisher
  readonly #retention: Retention
  readonly #schemas: SchemaNames
  readonly #signals: Signals
  readonly #stopping = new AbortController()
  /** Calls `onError`, which must not break us: what it throws has nobody left to be told. */
  readonly #tell = (error: Error): void => {
    try {
      this.#options.onError?.(error)
    } catch {
      // The logger, or `stopped`, has the error that it was told.
    }
  }
  readonly #streams: StreamMemory = { broken: 0 }
  #resolveStopped!: () => void
  #rejectStopped!: (error: Error) => void
  #starting: Promise<void> | undefined
  #ending: Promise<void> | undefined
  #sweeping: Promise<void> | undefined
  #state: RelayState = 'idle'
  #capture: 'polling' | 'replication' | undefined
  #epoch = ''
  #shards: readonly number[] = []
  readonly #crashes = new CrashCounter()
  #parked = { keys: 0, records: 0 }
  readonly #count = { published: 0, publishedBytes: 0, pages: 0, resent: 0, failures: 0, lateRetries: 0, fallbacks: 0 }

  constructor(options: RelayOptions) {
    this.#options = options
    this.#clock = options.clock ?? systemClock
    this.#logger = options.logger ?? silentLogger
    this.#schemas = resolveSchemas(options.schemas)
    this.#signals = options.signals ?? new Signals()
    const publisher = options.broker.publisher({
      onLateRetry: (late) => {
        this.#count.lateRetries += late.count
        this.#logger.error(
          { ...late, oldestMs: Math.round(late.oldestMs) },
          'sent again past the duplicate window of the stream: the events may be there twice; raise its duplicate_window',
        )
      },
      timeoutMs: options.publishTimeoutMs ?? DEFAULTS.publishTimeoutMs,
    })
    this.#publisher = tracedPublisher(publisher, options.broker.system)
    this.#retention = new Retention({
      clock: this.#clock,
      logger: this.#logger,
      onError: this.#tell,
      postgres: options.postgres,
      retentionMs: options.retentionMs ?? DEFAULTS.retentionMs,
      schema: this.#schemas.outbox,
      signals: this.#signals,
    })
    this.stopped = new Promise((resolve, reject) => {
      this.#resolveStopped = resolve
      this.#rejectStopped = reject
    })
    // onError is told as well; nobody need listen here.
    this.stopped.catch(() => {})
  }

  start(): Promise<void> {
    return (this.#starting ??= this.#start())
  }

  async stop({ timeoutMs = STOP_TIMEOUT_MS }: StopOptions = {}): Promise<void> {
    this.#stopping.abort()
    if (this.#starting === undefined) void this.#end()
    await withDeadline(this.#clock, this.stopped, timeoutMs, () => {
      return new MillraceError(
        'SHUTDOWN_TIMEOUT',
        `the relay did not come to rest within ${timeoutMs} ms; what was in flight is sent again by the next relay`,
      )
    })
  }

  stats(): RelayStats {
    return {
      state: this.#state,
      capture: this.#capture,
      epoch: this.#epoch,
      shards: this.#shards,
      parked: this.#parked,
      retention: this.#retention.stats(),
      ...this.#count,
    }
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.stop()
  }

  async #start(): Promise<void> {
    try {
      if (this.#stopping.signal.aborted) {
        throw new MillraceError('LIFECYCLE_STOPPED', 'the relay was stopped; make a new one')
      }
      outliveLostClients(this.#options.postgres)
      await requireSchema(this.#options.postgres, this.#schemas)
      await this.#publisher.start()
      if (this.#options.retentionMs !== 0) this.#sweeping = this.#keepRetention()
      await new Promise<void>((resolve, reject) => {
        const ended = (): Promise<void> => this.#end().then(resolve)
        this.#run(resolve).then(ended, (error: Error) => this.#end(error).then(() => reject(error)))
      })
    } catch (error) {
      await this.#end(error as Error)
      throw error
    }
  }

  /** Any relay sweeps, whoever owns the shards. */
  #keepRetention(): Promise<void> {
    const options = { clock: this.#clock, intervalMs: SWEEP_INTERVAL_MS, logger: this.#logger }
    return keepRetention(this.#retention, { ...options, onError: this.#tell }, this.#stopping.signal)
  }

  /** Runs terms until it is stopped, or until one ends with an error that no new term would mend. */
  async #run(atWork: () => void): Promise<void> {
    const signal = this.#stopping.signal
    let worked = false
    let failures = 0
    const options = this.#termOptions((state) => {
      worked = true
      if (state === 'relaying') failures = 0
      atWork()
    })
    while (!signal.aborted) {
      try {
        await runTerm(options, signal)
      } catch (error) {
        if (!worked || (isMillraceError(error) && !error.retryable)) throw error
        if (signal.aborted) return this.#stoppedShort(error as Error)
        this.#epoch = ''
        this.#shards = []
        this.#state = 'recovering'
        this.#count.failures++
        const waitMs = backoffMs(++failures, DEFAULTS.backoff, this.#clock)
        this.#logger.warn(
          { error: (error as Error).message, waitMs: Math.round(waitMs) },
          'the term ended; beginning anew',
        )
        this.#tell(error as Error)
        await delay(this.#clock, waitMs, signal)
      }
    }
  }

  /** The last term lost the lease or the database while it was being put in order: the next owner goes on from there. */
  #stoppedShort(error: Error): void {
    this.#count.failures++
    this.#logger.warn(
      { error: error.message },
      'stopped without a last checkpoint; what it would have said is sent again',
    )
    this.#tell(error)
  }

  #termOptions(onState: (state: RelayState) => void): TermOptions {
    const options = this.#options
    const count = this.#count
    return {
      backoff: DEFAULTS.backoff,
      bounds: {
        maxBytes: options.pageBytes ?? DEFAULTS.pageBytes,
        maxMessages: options.pageSize ?? DEFAULTS.pageSize,
      },
      capture: options.capture ?? 'auto',
      clock: this.#clock,
      crashes: this.#crashes,
      holder: `${hostname()}:${process.pid}`,
      leaseTtlMs: options.leaseTtlMs ?? DEFAULTS.leaseTtlMs,
      logger: this.#logger,
      onCapture: (reading, why) => this.#onCapture(reading, why),
      onParked: (keys, records) => (this.#parked = { keys, records }),
      onPublished(page, setAside) {
        count.pages++
        count.published += page.messages.length - setAside
        count.publishedBytes += page.bytes
      },
      onReplayed(records, bytes) {
        count.published += records
        count.publishedBytes += bytes
      },
      onRetry: (unresolved) => (count.resent += unresolved.length),
      onState: (state, epoch, shards) => {
        if (state !== this.#state || shards.join() !== this.#shards.join())
          this.#logger.info({ state, epoch, shards }, state === 'relaying' ? 'relaying' : 'standing by')
        this.#state = state
        this.#epoch = epoch
        this.#shards = shards
        onState(state)
      },
      pollIntervalMs: options.pollIntervalMs ?? DEFAULTS.pollIntervalMs,
      postgres: options.postgres,
      publisher: this.#publisher,
      schema: this.#schemas.outbox,
      signals: this.#signals,
      slot: options.slot,
      streams: this.#streams,
    }
  }

  #onCapture(reading: 'polling' | 'replication', why: string): void {
    if (this.#capture === 'replication' && reading === 'polling') this.#count.fallbacks++
    if (this.#capture !== reading) {
      if (why === '') this.#logger.info({ capture: reading }, `reading by ${reading}`)
      else this.#logger.warn({ capture: reading, why }, `reading by ${reading}: ${why}`)
    }
    this.#capture = reading
    this.#signals.emit('relay:capture', reading)
  }

  /** Closes the publisher and settles `stopped`, once. */
  #end(error?: Error): Promise<void> {
    return (this.#ending ??= this.#close(error))
  }

  async #close(error?: Error): Promise<void> {
    this.#stopping.abort()
    try {
      await this.#publisher.close()
    } catch (cause) {
      this.#logger.warn({ error: (cause as Error).message }, 'the publisher did not close well')
    }
    await this.#sweeping
    this.#state = 'stopped'
    this.#epoch = ''
    this.#shards = []
    if (error === undefined) return this.#resolveStopped()
    this.#tell(error)
    this.#rejectStopped(error)
  }
}
