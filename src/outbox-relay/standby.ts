import { MillraceError } from '../core/errors.ts'

/** Capture reads the primary only: a snapshot taken on a standby leaves out transactions that run on the primary. */
export function standbyRefused(): MillraceError {
  return new MillraceError(
    'STANDBY_REFUSED',
    'the database is a standby: its snapshots leave out running transactions, and events would be lost; connect to the primary',
  )
}
