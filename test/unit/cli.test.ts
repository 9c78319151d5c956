import { describe, expect, test } from 'vitest'
import { defineCommand, type Command, type CommandIo } from '../../src/cli/command.ts'
import { choiceFlag, flagName, integerFlag, switchFlag, textFlag } from '../../src/cli/flag.ts'
import { COMMANDS, packageVersion, runCli, type CommandEntry } from '../../src/cli/run-cli.ts'
import { MillraceError } from '../../src/core/errors.ts'

const flags = {
  colour: choiceFlag({ choices: ['red', 'green'], environment: ['TEST_COLOUR'], summary: 'A colour.' }),
  dryRun: switchFlag({ environment: ['TEST_DRY_RUN'], summary: 'Only look.' }),
  pageSize: integerFlag({ environment: ['TEST_PAGE_SIZE'], max: 10, min: 1, summary: 'How many.', value: '<n>' }),
  url: textFlag({
    environment: ['TEST_URL', 'URL'],
    parse(text) {
      if (!text.startsWith('db://')) throw new RangeError('db://host')
      return text
    },
    required: true,
    requiredUnless: ['TEST_HOST'],
    summary: 'Where.',
    value: '<url>',
  }),
}

describe('flags and environment', () => {
  test('a flag goes over the environment, the first variable over the second, and nothing has a default', async () => {
    expect((await run(['go', '--url', 'db://flag'], { TEST_URL: 'db://one', URL: 'db://two' })).values).toEqual({
      url: 'db://flag',
    })
    expect((await run(['go'], { TEST_URL: 'db://one', URL: 'db://two' })).values).toEqual({ url: 'db://one' })
    expect((await run(['go'], { TEST_URL: '', URL: 'db://two' })).values).toEqual({ url: 'db://two' })
  })

  test('each kind of flag reads its value from either side', async () => {
    const expected = { colour: 'red', dryRun: true, pageSize: 7, url: 'db://h' }
    const byFlag = ['go', '--colour=red', '--dry-run', '--page-size', '7', '--url=db://h']
    expect((await run(byFlag)).values).toEqual(expected)
    const environment = { TEST_COLOUR: 'red', TEST_DRY_RUN: 'yes', TEST_PAGE_SIZE: '7', TEST_URL: 'db://h' }
    expect((await run(['go'], environment)).values).toEqual(expected)
    expect((await run(['go'], { ...environment, TEST_DRY_RUN: '0' })).values).toMatchObject({ dryRun: false })
  })

  test('a required flag may be left out where another variable makes it unnecessary', async () => {
    expect((await run(['go'], { TEST_HOST: 'h' })).values).toEqual({})
  })
})

describe('problems', () => {
  test('come all at once, each with what was given and what would be right', async () => {
    const { code, err } = await run(
      ['go', '--page-sise', '3', '--colour', 'blue', '--dry-run=no', 'stray', '--page-size'],
      {
        URL: 'nope',
      },
    )
    expect(code).toBe(2)
    expect(err).toBe(
      [
        'millrace go: 6 problem(s)',
        '  --page-sise: got an unknown flag; expected --page-size, if that is what you mean',
        '  --dry-run: got a value; expected --dry-run alone',
        '  stray: got a word that is no flag; expected flags only, as --name value',
        '  --page-size: got no value; expected --page-size <n>',
        "  --colour: got 'blue'; expected one of red, green",
        "  URL: got 'nope'; expected db://host",
        'See: millrace help go',
        '',
      ].join('\n'),
    )
  })

  test('a flag is not taken for the value of the one before it', async () => {
    const { err } = await run(['go', '--url', '--page-size', '3'])
    expect(err).toContain('1 problem(s)\n  --url: got no value; expected --url <url>')
  })

  test('a required flag that is missing says where else it may stand: exit 2', async () => {
    const { code, err } = await run(['go'])
    expect(code).toBe(2)
    expect(err).toContain('--url: got nothing; expected --url <url>, or TEST_URL or URL in the environment')
  })

  test.each([
    ['--page-size=11', 'an integer from 1 to 10'],
    ['--page-size=1e1', 'an integer from 1 to 10'],
    ['--page-size=-1', 'an integer from 1 to 10'],
    ['--colour=', '--colour <red|green>'],
  ])('%s is refused', async (flag, expected) => {
    expect((await run(['go', '--url=db://h', flag])).err).toContain(`expected ${expected}`)
  })

  test('a wrong value alone is exit 78, from a flag and from the environment', async () => {
    expect((await run(['go', '--url=nope'])).code).toBe(78)
    expect((await run(['go'], { URL: 'nope' })).code).toBe(78)
  })

  test('a password in a wrong value is not shown', async () => {
    const { err } = await run(['go', '--url', 'http://joe:s3cret@host/x'])
    expect(err).toContain('http://joe:***@host/x')
    expect(err).not.toContain('s3cret')
  })
})

describe('commands', () => {
  test('no command prints the overview on standard error: exit 2', async () => {
    const { code, err, out } = await run([])
    expect([code, out]).toEqual([2, ''])
    expect(err).toContain('Usage: millrace <command>')
  })

  test.each([['--help'], ['-h'], ['help']])('%s prints the overview: exit 0', async (arg) => {
    const { code, out } = await run([arg])
    expect(code).toBe(0)
    expect(out).toContain('go  Goes.')
    for (const exit of ['0 ', '1 ', '2 ', '78 ']) expect(out).toMatch(new RegExp(`^  ${exit}`, 'm'))
  })

  test.each([[['help', 'go']], [['go', '--help']], [['go', '--page-size', 'x', '-h']]])(
    '%s prints its help: exit 0',
    async (args) => {
      const { code, out } = await run(args)
      expect(code).toBe(0)
      expect(out).toContain('--page-size <n>')
      expect(out).toContain('[TEST_URL, URL]')
    },
  )

  test.each([['--version'], ['-v']])('%s prints the version', async (arg) => {
    expect(await run([arg])).toMatchObject({ code: 0, out: `${packageVersion()}\n` })
  })

  test('an unknown command names the nearest: exit 2', async () => {
    expect(await run(['gp'])).toMatchObject({ code: 2, err: expect.stringContaining("did you mean 'go'?") as string })
    expect(await run(['help', 'gp'])).toMatchObject({ code: 2 })
    expect((await run(['whatever'])).err).toContain('the commands are go')
  })

  test('a flag before the command is explained: exit 2', async () => {
    const { code, err } = await run(['--url', 'db://h', 'go'])
    expect(code).toBe(2)
    expect(err).toContain('--url stands before the command')
  })
})

describe('what ends a command', () => {
  test('its own exit code', async () => {
    expect((await run(['go', '--url=db://h'], {}, () => 5)).code).toBe(5)
  })

  test('an error is 1, with all its causes in one line and no stack', async () => {
    const { code, err } = await run(['go', '--url=db://h'], {}, () => {
      throw new Error('no answer', { cause: Object.assign(new Error('socket closed'), { code: 'ECONNRESET' }) })
    })
    expect([code, err]).toEqual([1, 'millrace go: no answer: socket closed (ECONNRESET)\n'])
  })

  test('a missing peer is 1, with the npm line', async () => {
    const { code, err } = await run(['go', '--url=db://h'], {}, () => {
      throw new MillraceError('PEER_MISSING', 'Run: npm i pg')
    })
    expect([code, err]).toEqual([1, 'millrace go: Run: npm i pg (PEER_MISSING)\n'])
  })

  test('a configuration that the library refuses is 78', async () => {
    const { code } = await run(['go', '--url=db://h'], {}, () => {
      throw new MillraceError('CONFIG_INVALID', 'pageSize: got 0')
    })
    expect(code).toBe(78)
  })

  test('an error that repeats a password of this call does not show it', async () => {
    const { err } = await run(['go', '--url=db://joe:s3%40cret@h'], { PGPASSWORD: 'hush-hush' }, () => {
      throw new Error('joe may not enter with s3@cret, s3%40cret or hush-hush')
    })
    expect(err).toBe('millrace go: joe may not enter with ***, *** or ***\n')
  })
})

describe('the table of commands', () => {
  test('has the contracts of the outside: names and flags', async () => {
    const named = Object.fromEntries(
      await Promise.all(
        COMMANDS.map(async (entry) => [entry.name, Object.keys((await entry.load()).flags).map(flagName)] as const),
      ),
    )
    const parked = ['parked list', 'parked show', 'parked replay', 'parked discard']
    expect(Object.keys(named)).toEqual([
      'demo',
      'migrate',
      'checkpoint show',
      'checkpoint re-anchor',
      ...parked,
      'relay',
    ])
    const filters = ['--id', '--key', '--topic', '--type']
    const asking = ['--all', '--database-url', '--dry-run', ...filters, '--json', '--outbox-schema', '--yes']
    expect(named['parked list']?.toSorted()).toEqual(
      ['--after', '--database-url', ...filters, '--json', '--limit', '--outbox-schema'].toSorted(),
    )
    expect(named['parked show']).toEqual(['--database-url', '--id', '--json', '--outbox-schema', '--payload'])
    expect(named['parked replay']?.toSorted()).toEqual(asking.toSorted())
    expect(named['parked discard']?.toSorted()).toEqual([...asking, '--reason'].toSorted())
    expect(named['checkpoint show']).toEqual(['--database-url', '--json', '--outbox-schema'])
    expect(named['checkpoint re-anchor']).toEqual([
      '--database-url',
      '--dry-run',
      '--from',
      '--lock-timeout-ms',
      '--outbox-schema',
      '--yes',
    ])
    expect(named['migrate']).toEqual([
      '--database-url',
      '--dry-run',
      '--inbox-schema',
      '--lock-timeout-ms',
      '--outbox-schema',
    ])
    expect(named['relay']).toEqual([
      '--broker',
      '--capture',
      '--database-url',
      '--lease-ttl-ms',
      '--log-level',
      '--outbox-schema',
      '--page-bytes',
      '--page-size',
      '--poll-interval-ms',
      '--publish-timeout-ms',
      '--retention-ms',
      '--shutdown-timeout-ms',
      '--slot',
    ])
  })

  test.each(COMMANDS.map((entry) => [entry.name, entry] as const))(
    '%s: flags are sorted, and each stands in the environment under its own name',
    async (name, entry) => {
      const command = await entry.load()
      expect(command.name).toBe(name)
      const names = Object.keys(command.flags)
      expect(names).toEqual(names.toSorted())
      for (const [flag, { environment }] of Object.entries(command.flags)) {
        const own = `MILLRACE_${flagName(flag).slice(2).replaceAll('-', '_').toUpperCase()}`
        expect(environment[0]).toBe(own)
      }
    },
  )
})

interface Outcome {
  readonly code: number
  readonly out: string
  readonly err: string
  readonly values: unknown
}

/** Runs a command line against a table of one command, `go`. */
async function run(
  args: readonly string[],
  environment: CommandIo['environment'] = {},
  body: () => number = () => 0,
): Promise<Outcome> {
  let out = ''
  let err = ''
  let values: unknown
  const go: Command = defineCommand({
    name: 'go',
    summary: 'Goes.',
    description: 'It goes.',
    examples: ['millrace go'],
    flags,
    run(given) {
      values = given
      return Promise.resolve().then(body)
    },
  })
  const table: readonly CommandEntry[] = [{ name: 'go', summary: 'Goes.', load: () => Promise.resolve(go) }]
  const io = { environment, out: (text: string) => void (out += text), err: (text: string) => void (err += text) }
  const code = await runCli(args, io, table)
  return { code, out, err, values }
}
