import { MillraceError } from '../../core/errors.ts'

/** What to say of a transaction that is over; its library may still send statements, outside of every transaction. */
export function endedTransaction(library: string, cause?: unknown): MillraceError {
  return new MillraceError(
    'APPEND_NOT_IN_TRANSACTION',
    `append was given a transaction of ${library} that has ended, so the event could be there without the data. Await ` +
      'append inside the transaction, before it commits.',
    { cause },
  )
}
