import { MillraceError } from '../../../core/errors.ts'

/**
 * Bytes that are no message of the protocol. Retryable: a new connection reads the same WAL again from the slot's
 * position, so nothing is lost; what comes again and again is a proxy that is no Postgres, or a bug of ours.
 */
export function walMalformed(what: string, details: Readonly<Record<string, unknown>> = {}): MillraceError {
  return new MillraceError(
    'WAL_MALFORMED',
    `the replication stream is malformed (${what}); it is read again over a new connection. If this repeats, connect the relay to the server itself`,
    { details },
  )
}
