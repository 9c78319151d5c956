import { parseArgs } from 'node:util'
import { nearest, type Problem } from '../core/options.ts'
import { redactUrls } from '../daemon/redact.ts'
import { flagName, type Flag } from './flag.ts'

/** What the command line and the environment say, with everything that is wrong with them at once. */
export interface FlagReading {
  /** Help was asked for; nothing else counts then. */
  readonly help: boolean
  readonly values: Readonly<Record<string, unknown>>
  /** Wrong in form: unknown, repeated, without a value, left out. */
  readonly usage: readonly Problem[]
  /** Right in form, wrong in value. */
  readonly configuration: readonly Problem[]
}

/** Reads a command's flags: the command line first, the environment for what it leaves open. */
export function readFlags(
  flags: Readonly<Record<string, Flag<unknown>>>,
  args: readonly string[],
  environment: Readonly<Record<string, string | undefined>>,
): FlagReading {
  const usage: Problem[] = []
  const configuration: Problem[] = []
  const values: Record<string, unknown> = {}
  const { help, given } = readArguments(flags, args, usage)
  for (const [name, flag] of Object.entries(flags)) {
    const source = given.get(name) ?? fromEnvironment(flag, environment)
    if (source === undefined) {
      const path = flagName(name)
      const spared = given.has(name) || flag.requiredUnless?.some((other) => environment[other])
      if (flag.required && !spared && !usage.some((problem) => problem.path === path)) {
        const elsewhere = flag.environment.length > 0 ? `, or ${flag.environment.join(' or ')} in the environment` : ''
        usage.push({ path, received: 'nothing', expected: `${path} ${flag.value ?? ''}`.trim() + elsewhere })
      }
      continue
    }
    try {
      values[name] = flag.parse(source.text)
    } catch (error) {
      if (!(error instanceof RangeError)) throw error
      configuration.push({ path: source.path, received: quote(source.text), expected: error.message })
    }
  }
  return { help, values, usage, configuration }
}

interface Source {
  readonly path: string
  readonly text: string
}

function fromEnvironment(
  flag: Flag<unknown>,
  environment: Readonly<Record<string, string | undefined>>,
): Source | undefined {
  for (const path of flag.environment) {
    const text = environment[path]
    if (text !== undefined && text !== '') return { path, text }
  }
  return undefined
}

function readArguments(
  flags: Readonly<Record<string, Flag<unknown>>>,
  args: readonly string[],
  usage: Problem[],
): { readonly help: boolean; readonly given: ReadonlyMap<string, Source> } {
  const byOption = new Map(Object.entries(flags).map(([name, flag]) => [flagName(name).slice(2), { name, flag }]))
  const options: Record<string, { type: 'string' | 'boolean'; short?: string }> = {
    help: { type: 'boolean', short: 'h' },
  }
  for (const [option, { flag }] of byOption) options[option] = { type: flag.value === undefined ? 'boolean' : 'string' }

  const given = new Map<string, Source>()
  let help = false
  let rest = [...args]
  for (;;) {
    const { tokens } = parseArgs({ args: rest, options, strict: false, allowPositionals: true, tokens: true })
    const swallowed = tokens.find(
      (token) => token.kind === 'option' && token.inlineValue === false && token.value.startsWith('-'),
    )
    if (swallowed?.kind === 'option') {
      // `--page-size --broker …`: the parser takes the next flag for the value. Report the one, and read on without it.
      usage.push(withoutValue(swallowed.rawName, options[swallowed.name] && byOption.get(swallowed.name)?.flag))
      rest = rest.filter((_, index) => index !== swallowed.index)
      continue
    }
    let afterUnknown = -1
    for (const token of tokens) {
      // The word after a mistyped flag is most likely its value: one mistake, one line.
      if (token.kind === 'positional' && token.index !== afterUnknown) {
        usage.push({ path: token.value, received: 'a word that is no flag', expected: 'flags only, as --name value' })
      }
      if (token.kind !== 'option') continue
      if (token.name === 'help') {
        help = true
        continue
      }
      const known = byOption.get(token.name)
      if (known === undefined) {
        usage.push({ path: token.rawName, received: 'an unknown flag', expected: suggest(token.name, byOption.keys()) })
        afterUnknown = token.index + 1
      } else if (known.flag.value === undefined) {
        if (token.value === undefined) given.set(known.name, { path: token.rawName, text: 'true' })
        else usage.push({ path: token.rawName, received: 'a value', expected: `${token.rawName} alone` })
      } else if (token.value === undefined || token.value === '') {
        usage.push(withoutValue(token.rawName, known.flag))
      } else {
        given.set(known.name, { path: token.rawName, text: token.value })
      }
    }
    return { help, given }
  }
}

function suggest(name: string, known: Iterable<string>): string {
  const names = [...known, 'help']
  const begun = names.filter((other) => other.startsWith(name))
  const near = begun.length === 1 ? begun[0] : nearest(name, names)
  return near === undefined ? 'a flag of --help' : `--${near}, if that is what you mean`
}

function withoutValue(rawName: string, flag: Flag<unknown> | undefined): Problem {
  return { path: rawName, received: 'no value', expected: `${rawName} ${flag?.value ?? '<value>'}` }
}

function quote(text: string): string {
  const shown = redactUrls(text)
  return shown.length > 200 ? `a text of ${shown.length} characters` : `'${shown}'`
}
