import { createRequire } from 'node:module'
import { nearest, type Problem } from '../core/options.ts'
import { explainError } from '../daemon/explain-error.ts'
import { createRedactor, redactUrls, secretsOf } from '../daemon/redact.ts'
import type { Command, CommandIo } from './command.ts'
import { EXIT, exitCodeOf } from './exit-code.ts'
import { commandHelp, mainHelp } from './help.ts'
import { readFlags } from './read-flags.ts'

/** A row of the table: what the overview shows, and how the rest is loaded. */
export interface CommandEntry {
  readonly name: string
  readonly summary: string
  load(): Promise<Command>
}

/** The commands, in the order a newcomer needs them. */
export const COMMANDS: readonly CommandEntry[] = [
  {
    name: 'demo',
    summary: 'the whole channel on this machine, with crashes and duplicates, and a verdict',
    load: async () => (await import('./demo/demo-command.ts')).demoCommand,
  },
  {
    name: 'migrate',
    summary: 'create or upgrade the schemas in a database',
    load: async () => (await import('./migrate-command.ts')).migrateCommand,
  },
  {
    name: 'checkpoint show',
    summary: 'how far each shard is published, and whether this database may go on from there',
    load: async () => (await import('./checkpoint-command.ts')).checkpointShowCommand,
  },
  {
    name: 'checkpoint re-anchor',
    summary: 'publish again all that an outbox holds, after a dump and restore or a logical copy',
    load: async () => (await import('./checkpoint-command.ts')).checkpointReAnchorCommand,
  },
  {
    name: 'parked list',
    summary: 'events that the broker refuses, and what waits behind them',
    load: async () => (await import('./parked-command.ts')).parkedListCommand,
  },
  {
    name: 'parked show',
    summary: 'one of them, with its payload when that is asked for',
    load: async () => (await import('./parked-command.ts')).parkedShowCommand,
  },
  {
    name: 'parked replay',
    summary: 'publish them after all, key by key, in order',
    load: async () => (await import('./parked-command.ts')).parkedReplayCommand,
  },
  {
    name: 'parked discard',
    summary: 'give them up, for a reason that is kept',
    load: async () => (await import('./parked-command.ts')).parkedDiscardCommand,
  },
  {
    name: 'relay',
    summary: 'carry events from the outbox to a broker until told to stop',
    load: async () => (await import('./relay-command.ts')).relayCommand,
  },
]

/** Runs one command line and resolves with its exit code; it never rejects. */
export async function runCli(
  args: readonly string[],
  io: CommandIo,
  commands: readonly CommandEntry[] = COMMANDS,
): Promise<number> {
  const [first, ...others] = args
  if (first === '--version' || first === '-v') {
    io.out(`${packageVersion()}\n`)
    return EXIT.ok
  }
  if (first === '--help' || first === '-h' || (first === 'help' && others.length === 0)) {
    io.out(mainHelp(commands))
    return EXIT.ok
  }
  if (first === undefined) {
    io.err(mainHelp(commands))
    return EXIT.usage
  }
  const { entry, rest, wanted } = findCommand(first === 'help' ? others : args, commands)
  if (entry === undefined) return refuseCommand(wanted, commands, io)
  try {
    const command = await entry.load()
    return first === 'help' ? showHelp(command, io) : await runCommand(command, rest, io)
  } catch (error) {
    io.err(`millrace ${entry.name}: ${redactorOf(rest, io)(explainError(error))}\n`)
    return exitCodeOf(error)
  }
}

/** A command is a word, or two: `checkpoint show`. */
function findCommand(
  words: readonly string[],
  commands: readonly CommandEntry[],
): { readonly entry: CommandEntry | undefined; readonly rest: readonly string[]; readonly wanted: string } {
  const [first = '', second] = words
  const pair = `${first} ${second}`
  const isPair =
    second !== undefined && !second.startsWith('-') && commands.some(({ name }) => name.startsWith(`${first} `))
  const wanted = isPair ? pair : first
  return { entry: commands.find(({ name }) => name === wanted), rest: words.slice(isPair ? 2 : 1), wanted }
}

async function runCommand(command: Command, args: readonly string[], io: CommandIo): Promise<number> {
  const { help, values, usage, configuration } = readFlags(command.flags, args, io.environment)
  if (help) return showHelp(command, io)
  const problems = [...usage, ...configuration]
  if (problems.length === 0) return command.run(values, io)
  io.err(`millrace ${command.name}: ${problems.length} problem(s)\n${problems.map(problemLine).join('')}`)
  io.err(`See: millrace help ${command.name}\n`)
  return usage.length > 0 ? EXIT.usage : EXIT.configuration
}

function showHelp(command: Command, io: CommandIo): number {
  io.out(commandHelp(command))
  return EXIT.ok
}

function refuseCommand(wanted: string, commands: readonly CommandEntry[], io: CommandIo): number {
  const names = commands.map(({ name }) => name)
  const near = nearest(wanted, [...names, 'help'])
  if (wanted.startsWith('-')) {
    io.err(`millrace: ${redactUrls(wanted)} stands before the command; write millrace <command> [flags]\n`)
  } else {
    const hint = near === undefined ? `the commands are ${names.join(', ')}` : `did you mean '${near}'?`
    io.err(`millrace: unknown command '${redactUrls(wanted)}'; ${hint}\n`)
  }
  io.err('See: millrace --help\n')
  return EXIT.usage
}

function problemLine({ path, received, expected }: Problem): string {
  return `  ${redactUrls(path)}: got ${received}; expected ${expected}\n`
}

/** Hides what any URL or password variable of this call holds, wherever an error repeats it. */
function redactorOf(args: readonly string[], io: CommandIo): (text: string) => string {
  const environment = Object.values(io.environment)
  const urls = [...args, ...environment].filter((text) => text?.includes('://'))
  return createRedactor([...urls.flatMap(secretsOf), io.environment['PGPASSWORD']])
}

/** The version in package.json, which the package finds by its own name from source and from `dist` alike. */
export function packageVersion(): string {
  return (createRequire(import.meta.url)('millrace/package.json') as { version: string }).version
}
