import type { Flag, FlagValues } from './flag.ts'

/** What a command has of the world: its environment and two streams. A test gives it others. */
export interface CommandIo {
  readonly environment: Readonly<Record<string, string | undefined>>
  /** Writes to standard output, as is. */
  out(text: string): void
  /** Writes to standard error, as is. */
  err(text: string): void
  /** Asks whoever sits at the terminal, and resolves with the answer; absent when nobody does. */
  ask?(question: string): Promise<string>
}

/** One word after `millrace`. `run` resolves with the exit code; what it throws is explained on standard error. */
export interface Command {
  readonly name: string
  /** One line for the list of commands. */
  readonly summary: string
  /** What the help says besides the flags: paragraphs. */
  readonly description: string
  readonly examples: readonly string[]
  readonly flags: Readonly<Record<string, Flag<unknown>>>
  run(flags: Readonly<Record<string, unknown>>, io: CommandIo): Promise<number>
}

/**
 * A command whose `run` sees its flags typed, under the names of the table (`--database-url` is `databaseUrl`).
 *
 * @example
 * export const demoCommand = defineCommand({
 *   name: 'demo', summary: '…', description: '…', examples: ['millrace demo'],
 *   flags: { events: integerFlag({ environment: ['MILLRACE_EVENTS'], max: 1_000_000, min: 1, summary: '…', value: '<n>' }) },
 *   async run({ events = 20_000 }, io) { … return EXIT.ok },
 * })
 */
export function defineCommand<Flags extends Readonly<Record<string, Flag<unknown>>>>(
  command: Omit<Command, 'flags' | 'run'> & {
    readonly flags: Flags
    run(flags: FlagValues<Flags>, io: CommandIo): Promise<number>
  },
): Command {
  return command
}
