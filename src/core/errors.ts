/**
 * Every error Millrace raises, in one table. A code is part of the public contract: programs match on it, and the
 * message is for people. `retryable` says whether the same call may succeed later without anybody changing anything.
 */
export const ERROR_CODES = {
  APPEND_INVALID_EVENT: { retryable: false },
  APPEND_NOT_IN_TRANSACTION: { retryable: false },
  APPEND_POOL_GIVEN: { retryable: false },
  APPEND_UNKNOWN_TRANSACTION: { retryable: false },
  BROKER_UNREACHABLE: { retryable: true },
  CHECKPOINT_IN_USE: { retryable: true },
  CHECKPOINT_UNCERTIFIED: { retryable: false },
  CONFIG_INVALID: { retryable: false },
  CONNECTION_LOST: { retryable: true },
  DATABASE_UNREACHABLE: { retryable: true },
  EFFECT_ROLLED_BACK: { retryable: false },
  EFFECT_TRANSACTION_MISUSED: { retryable: false },
  LEASE_LOST: { retryable: true },
  LIFECYCLE_NOT_STARTED: { retryable: false },
  LIFECYCLE_STOPPED: { retryable: false },
  MESSAGE_NOT_JSON: { retryable: false },
  MESSAGE_REJECTED: { retryable: false },
  MIGRATION_CHANGED: { retryable: false },
  MIGRATION_LOCKED: { retryable: true },
  PARTITION_LOST: { retryable: false },
  PEER_MISSING: { retryable: false },
  PUBLICATION_CHANGED: { retryable: true },
  PUBLICATION_INVALID: { retryable: true },
  PUBLICATION_MISSING: { retryable: true },
  PUBLISH_FATAL: { retryable: false },
  PUBLISH_REFUSED: { retryable: true },
  REPLICATION_FAILED: { retryable: true },
  RETENTION_DENIED: { retryable: false },
  RETENTION_STALLED: { retryable: true },
  SCHEMA_MISSING: { retryable: false },
  SCHEMA_NEWER: { retryable: false },
  SEQUENCE_ALTERED: { retryable: false },
  SERVER_TOO_OLD: { retryable: false },
  SERVICE_START_FAILED: { retryable: true },
  SERVICE_UNAVAILABLE: { retryable: false },
  SHUTDOWN_TIMEOUT: { retryable: false },
  STANDBY_REFUSED: { retryable: true },
  WAL_MALFORMED: { retryable: true },
  WAL_ONLY_UNREAD: { retryable: false },
} as const satisfies Record<string, { readonly retryable: boolean }>

/** One of the stable codes of {@link ERROR_CODES}. */
export type ErrorCode = keyof typeof ERROR_CODES

/** What an error carries besides its message: the cause, and ids and sizes (never payloads or secrets). */
export interface MillraceErrorOptions {
  readonly cause?: unknown
  readonly details?: Readonly<Record<string, unknown>>
}

/**
 * The base of every error that Millrace raises. The message says what is wrong and how to put it right.
 *
 * @example
 * try { await outbox.append(pool, event) } catch (error) {
 *   if (error instanceof MillraceError && error.code === 'APPEND_POOL_GIVEN') …
 * }
 */
export class MillraceError extends Error {
  /** The stable code to match on. */
  readonly code: ErrorCode
  /** Whether the same call may succeed later without a change. */
  readonly retryable: boolean
  /** Ids, names and sizes that belong to the error. */
  readonly details: Readonly<Record<string, unknown>>

  constructor(code: ErrorCode, message: string, options: MillraceErrorOptions = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause })
    this.name = 'MillraceError'
    this.code = code
    this.retryable = ERROR_CODES[code].retryable
    this.details = options.details ?? {}
  }
}

/** True for a {@link MillraceError} with this code, also for one made by another copy of the package. */
export function isMillraceError(error: unknown, code?: ErrorCode): error is MillraceError {
  if (!(error instanceof Error) || error.name !== 'MillraceError') return false
  return code === undefined || (error as { code?: unknown }).code === code
}
