import type { Command } from './command.ts'
import { EXIT_HELP } from './exit-code.ts'
import { flagName } from './flag.ts'

/** `millrace --help`. */
export function mainHelp(commands: readonly { readonly name: string; readonly summary: string }[]): string {
  return `millrace carries events from a Postgres transaction to Kafka or NATS JetStream, and into another
service's transaction: never lost, once in effect, in order per key.

Usage: millrace <command> [flags]

Commands:
${columns(commands.map(({ name, summary }) => [name, summary]))}

Flags:
${columns([
  ['--help, -h', 'this page; after a command, its own'],
  ['--version, -v', 'the version'],
])}

${exitCodes()}

millrace help <command> explains a command and its flags.
`
}

/** `millrace help <command>`. */
export function commandHelp(command: Command): string {
  const rows = Object.entries(command.flags).map(([name, flag]) => {
    const environment = flag.environment.length > 0 ? ` [${flag.environment.join(', ')}]` : ''
    const byDefault = flag.byDefault === undefined ? '' : ` Default: ${flag.byDefault}.`
    const required = flag.required ? ' Required.' : ''
    return [
      `${flagName(name)} ${flag.value ?? ''}`.trim(),
      `${flag.summary}${required}${byDefault}${environment}`,
    ] as const
  })
  return `${command.summary}

Usage: millrace ${command.name} [flags]

${command.description.trim()}

Flags, and in brackets the environment variables that stand in for them (a flag goes first):
${columns([...rows, ['--help, -h', 'this page']])}

Examples:
${command.examples.map((example) => `  ${example}`).join('\n')}

${exitCodes()}
`
}

function exitCodes(): string {
  return `Exit codes:\n${columns(EXIT_HELP)}`
}

function columns(rows: readonly (readonly [string, string])[]): string {
  const width = Math.max(...rows.map(([first]) => first.length))
  return rows
    .map(([first, second]) => `  ${first.padEnd(width)}  ${wrap(second, 110 - width, ' '.repeat(width + 4))}`)
    .join('\n')
}

function wrap(text: string, width: number, indent: string): string {
  const lines: string[] = []
  let line = ''
  for (const word of text.split(' ')) {
    if (line !== '' && line.length + 1 + word.length > width) {
      lines.push(line)
      line = word
    } else line = line === '' ? word : `${line} ${word}`
  }
  lines.push(line)
  return lines.join(`\n${indent}`)
}
