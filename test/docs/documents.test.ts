import { existsSync, readFileSync } from 'node:fs'
import path from 'node:path'
import { describe, expect, test } from 'vitest'
import { flagName } from '../../src/cli/flag.ts'
import { COMMANDS } from '../../src/cli/run-cli.ts'
import { codeBlocks, documents, excerpt, ROOT } from './markdown.ts'

// What a shell block may call besides the project's own commands.
const OTHER_PROGRAMS = ['cd', 'curl', 'docker', 'export', 'git', 'kubectl', 'nats', 'psql', 'kafka-console-consumer.sh']

const blocks = documents()
  .filter((file) => existsSync(path.join(ROOT, file)))
  .flatMap((file) => codeBlocks(file, readFileSync(path.join(ROOT, file), 'utf8')))
const scripts = (JSON.parse(readFileSync(path.join(ROOT, 'package.json'), 'utf8')) as { scripts: object }).scripts

describe('the documents', () => {
  test('there is a README, and it has code', () => {
    expect(blocks.filter(({ place }) => place.startsWith('README.md')).length).toBeGreaterThan(0)
  })

  test('every block says its language', () => {
    expect(blocks.filter(({ language }) => language === '').map(({ place }) => place)).toEqual([])
  })

  test('every link to a file of the repository leads to one', () => {
    const broken = documents().flatMap((file) => {
      const text = readFileSync(path.join(ROOT, file), 'utf8').replaceAll(/```[\s\S]*?```/g, '')
      return [...text.matchAll(/\]\((?![a-z]+:|#)([^)#\s]+)[^)]*\)/g)]
        .map(([, target]) => target as string)
        .filter((target) => !existsSync(path.join(ROOT, path.dirname(file), target)))
        .map((target) => `${file}: ${target}`)
    })
    expect(broken).toEqual([])
  })
})

describe('TypeScript in the documents', () => {
  const typescript = blocks.filter(({ language }) => /^(ts|typescript|js|javascript)$/.test(language))

  test('every block names the tested file it was taken from', () => {
    expect(typescript.filter(({ from }) => from === undefined).map(({ place }) => place)).toEqual([])
  })

  test.each(typescript.filter(({ from }) => from !== undefined).map((block) => [block.place, block] as const))(
    '%s is what its file says',
    (_, block) => {
      expect(block.text.trim()).toBe(excerpt(block.from as string))
    },
  )
})

describe('commands in the documents', () => {
  const lines = blocks
    .filter(({ language }) => /^(sh|bash|shell|console)$/.test(language))
    .flatMap(({ place, text }) =>
      text
        .replaceAll(/\\\n\s*/g, ' ')
        .split(/\n|&&|\|\|?|;/)
        .map((line) =>
          line
            .replace(/^\s*(\$ )?/, '')
            .replace(/(^|\s)#.*$/, '')
            .trim(),
        )
        .filter((line) => line !== '')
        .map((line) => [place, line] as const),
    )

  test.each(lines)('%s: %s', async (_, line) => {
    const words = line.split(/\s+/).filter((word) => !/^[A-Z_]+=/.test(word))
    const [program, ...args] = words
    if (program === undefined || OTHER_PROGRAMS.includes(program)) return
    if (program === 'npm') checkNpm(args)
    else if (program === 'npx' || program === 'millrace') {
      const rest = program === 'npx' ? args.filter((word) => word !== '--yes' && word !== '-y') : ['millrace', ...args]
      expect(rest[0]).toBe('millrace')
      await checkMillrace(rest.slice(1))
    } else if (program === 'node') {
      const file = args.find((word) => !word.startsWith('-')) ?? ''
      expect(existsSync(path.join(ROOT, file)), `${file} exists`).toBe(true)
    } else expect.unreachable(`a program nobody knows: ${program}`)
  })
})

function checkNpm([verb, name, ...rest]: readonly string[]): void {
  if (verb === 'run') {
    expect(Object.keys(scripts)).toContain(name)
    if (name === 'demo') return
    expect(rest.filter((word) => word !== '--' && !word.startsWith('-'))).toEqual([])
  } else expect(['i', 'ci', 'install', 'test', 'pack']).toContain(verb)
}

async function checkMillrace([name, ...rest]: readonly string[]): Promise<void> {
  if (name === '--help' || name === '--version' || name === 'help') return
  const entry = COMMANDS.find((command) => command.name === name)
  expect(COMMANDS.map((command) => command.name)).toContain(name)
  const known = Object.keys((await entry?.load())?.flags ?? {}).map(flagName)
  const used = rest.filter((word) => word.startsWith('--')).map((word) => word.split('=')[0])
  expect(used.filter((flag) => flag !== '--help' && !known.includes(flag as string))).toEqual([])
}
