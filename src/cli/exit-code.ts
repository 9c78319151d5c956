import { isMillraceError } from '../core/errors.ts'

/** The exit codes, a contract as the flags are. */
export const EXIT = Object.freeze({
  /** It did what was asked; for the relay: it drained after SIGTERM or SIGINT. */
  ok: 0,
  /** It could not do it: the database, the broker, a missing package, or the relay ended by itself. */
  failure: 1,
  /** The command line is wrong: an unknown command or flag, a flag without its value, a required one left out. */
  usage: 2,
  /** A value is wrong, whether it came from a flag or from the environment. Starting again will not help. */
  configuration: 78,
})

/** What the help says of them. */
export const EXIT_HELP: readonly (readonly [code: string, meaning: string])[] = [
  ['0', 'done; the relay drained after SIGTERM or SIGINT'],
  ['1', 'failed: the database, the broker, a missing package, or the relay ended by itself'],
  ['2', 'wrong usage: an unknown command or flag, a missing value, a required flag left out'],
  ['78', 'a value in a flag or in the environment is wrong; do not restart'],
  ['130, 143', 'a second SIGINT or SIGTERM cut the drain short'],
]

/** The exit code for an error that ended a command. */
export function exitCodeOf(error: unknown): number {
  return isMillraceError(error, 'CONFIG_INVALID') ? EXIT.configuration : EXIT.failure
}
