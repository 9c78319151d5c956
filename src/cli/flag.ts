/** What every kind of flag has. There is no default here: a flag nobody gave is absent, and the relay's own default holds. */
export interface FlagOptions {
  /** What holds when nobody gives it, for the help only. */
  readonly byDefault?: string
  /** Environment variables that stand in for the flag; the first that is set and not empty counts. */
  readonly environment: readonly string[]
  /** Somebody must give it. */
  readonly required?: boolean
  /** Environment variables that make a required flag unnecessary. */
  readonly requiredUnless?: readonly string[]
  readonly summary: string
}

/** One flag of a command: its help, where else its value may come from, and how text becomes a value. */
export interface Flag<Value> extends FlagOptions {
  /** How the help writes the value, such as `<url>`; undefined for a switch, which takes none. */
  readonly value: string | undefined
  /** Reads the text, or throws a RangeError whose message completes "expected …". */
  parse(text: string): Value
}

/** The values of a table of flags; one that nobody gave is undefined. */
export type FlagValues<Flags extends Readonly<Record<string, Flag<unknown>>>> = {
  readonly [Name in keyof Flags]: Flags[Name] extends Flag<infer Value> ? Value | undefined : never
}

/** A flag whose value is text, checked by `parse` where that is given. */
export function textFlag(
  options: FlagOptions & { readonly value: string; readonly parse?: (text: string) => string },
): Flag<string> {
  return { parse: (text) => text, ...options }
}

/** A flag whose value is a whole number. */
export function integerFlag(
  options: FlagOptions & { readonly max: number; readonly min: number; readonly value: string },
): Flag<number> {
  return {
    ...options,
    parse(text) {
      const value = Number(text)
      if (!/^[+-]?\d+$/.test(text) || value < options.min || value > options.max) {
        throw new RangeError(`an integer from ${options.min} to ${options.max}`)
      }
      return value
    },
  }
}

/** A flag whose value is one of a few words. */
export function choiceFlag<const Choice extends string>(
  options: FlagOptions & { readonly choices: readonly Choice[] },
): Flag<Choice> {
  return {
    ...options,
    value: `<${options.choices.join('|')}>`,
    parse(text) {
      const choice = options.choices.find((known) => known === text)
      if (choice === undefined) throw new RangeError(oneOf(options.choices))
      return choice
    },
  }
}

/** A flag without a value. In the environment `1`, `true` and `yes` set it, `0`, `false` and `no` do not. */
export function switchFlag(options: FlagOptions): Flag<boolean> {
  return {
    ...options,
    value: undefined,
    parse(text) {
      if (/^(1|true|yes)$/i.test(text)) return true
      if (/^(0|false|no)$/i.test(text)) return false
      throw new RangeError('1, true, yes, 0, false or no')
    },
  }
}

/** `--database-url` for `databaseUrl`. */
export function flagName(name: string): string {
  return `--${name.replaceAll(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}`
}

function oneOf(choices: readonly string[]): string {
  return choices.length === 1 ? `'${choices[0]}'` : `one of ${choices.join(', ')}`
}
