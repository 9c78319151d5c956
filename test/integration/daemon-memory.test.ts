/** That the daemon runs under the flags that bound its memory, in the process that was started. */
import { spawn } from 'node:child_process'
import path from 'node:path'
import { expect, test } from 'vitest'
import { runUnder } from '../../src/cli/node-flags.ts'

const MODULE = path.resolve(import.meta.dirname, '../../src/cli/node-flags.ts')
const PROGRAM = `
  import { runUnder } from ${JSON.stringify(MODULE)}
  runUnder(['--max-semi-space-size=8'], process.env)
  process.stdout.write(JSON.stringify({ pid: process.pid, flags: process.execArgv, args: process.argv.slice(2) }))
`

interface Said {
  readonly pid: number
  readonly flags: readonly string[]
  readonly args: readonly string[]
}

async function say(
  flags: readonly string[],
  env: NodeJS.ProcessEnv = {},
): Promise<{ said: Said; pid: number; err: string }> {
  const file = path.join(import.meta.dirname, `daemon-memory-${process.pid}.mts`)
  const { writeFile, rm } = await import('node:fs/promises')
  await writeFile(file, PROGRAM)
  try {
    const child = spawn(process.execPath, [...flags, file, 'relay', '--a b'], {
      env: { PATH: process.env['PATH'], ...env },
    })
    let [out, err] = ['', '']
    child.stdout.on('data', (chunk: Buffer) => (out += chunk.toString()))
    child.stderr.on('data', (chunk: Buffer) => (err += chunk.toString()))
    await new Promise((resolve) => child.on('close', resolve))
    return { said: JSON.parse(out) as Said, pid: child.pid as number, err }
  } finally {
    await rm(file)
  }
}

test.runIf(process.platform !== 'win32')(
  'the flag is added in the same process, without a word, and the arguments are kept',
  async () => {
    const { said, pid, err } = await say(['--enable-source-maps'])
    expect(said).toEqual({ pid, flags: ['--enable-source-maps', '--max-semi-space-size=8'], args: ['relay', '--a b'] })
    expect(err).toBe('')
  },
)

test('a size that somebody chose stands', async () => {
  const onTheLine = await say(['--max-semi-space-size=32'])
  expect(onTheLine.said.flags).toEqual(['--max-semi-space-size=32'])
  const inTheEnvironment = await say([], { NODE_OPTIONS: '--max-semi-space-size=32' })
  expect(inTheEnvironment.said.flags).toEqual([])
})

test('nothing happens where nothing is missing', () => {
  runUnder([], process.env)
})
