/** What the end of a CI run says, whatever it was shown before: which tests failed and why, a line each. */
import { execFile } from 'node:child_process'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { expect, onTestFinished, test } from 'vitest'

const SCRIPT = path.resolve(import.meta.dirname, '../../scripts/sum-test-runs.ts')

interface Test {
  readonly fullName: string
  readonly status: 'failed' | 'passed' | 'pending'
  readonly failureMessages?: readonly string[]
}

const passedTest: Test = { fullName: 'holds', status: 'passed' }

/** The results of a run, as vitest writes them. */
function run(tests: readonly Test[], broken?: { readonly name: string; readonly message: string }): object {
  const count = (status: Test['status']): number => tests.filter((one) => one.status === status).length
  const file = { name: path.resolve('test/unit/a.test.ts'), message: '', assertionResults: tests }
  return {
    numFailedTests: count('failed'),
    numPassedTests: count('passed'),
    numPendingTests: count('pending'),
    success: count('failed') === 0 && broken === undefined,
    testResults: [
      { ...file, status: count('failed') === 0 ? 'passed' : 'failed' },
      ...(broken === undefined
        ? []
        : [{ ...broken, name: path.resolve(broken.name), status: 'failed', assertionResults: [] }]),
    ],
  }
}

async function sum(runs: readonly (object | undefined)[], ...steps: readonly string[]) {
  const folder = await mkdtemp(path.join(tmpdir(), 'millrace-sum-'))
  onTestFinished(() => rm(folder, { recursive: true }))
  const files = runs.map((_, i) => path.join(folder, `${i}.json`))
  for (const [i, results] of runs.entries()) {
    if (results !== undefined) await writeFile(files[i] as string, JSON.stringify(results))
  }
  return new Promise<{ code: unknown; lines: readonly string[] }>((resolve) => {
    execFile(process.execPath, [SCRIPT, ...files, '--', ...steps], (error, out) => {
      resolve({ code: error?.code ?? 0, lines: out.trimEnd().split('\n') })
    })
  })
}

test('the last lines are one for each test that failed, cut at 200 characters, and the count', async () => {
  const failing = (fullName: string, message: string): Test => ({
    fullName,
    status: 'failed',
    failureMessages: [message],
  })
  const { code, lines } = await sum(
    [
      run([passedTest, failing('first', `\u001b[31mAssertionError: ${'x'.repeat(300)}\u001b[39m\n    at here`)]),
      run([
        passedTest,
        { fullName: 'later', status: 'pending' },
        failing('second', `\nTimeout\n${'    at there\n'.repeat(500)}`),
      ]),
    ],
    'All tests',
  )
  expect(code).toBe(1)
  expect(lines.slice(-5)).toEqual([
    '1 skipped',
    'FAILED All tests',
    `FAILED test/unit/a.test.ts > first: ${`AssertionError: ${'x'.repeat(300)}`.slice(0, 200)}`,
    'FAILED test/unit/a.test.ts > second: Timeout',
    '2 passed, 2 failed',
  ])
  // The details come before.
  expect(lines.slice(0, -5).join('\n')).toContain('    at here')
  expect(lines.slice(0, -5).join('\n').length).toBeLessThan(2500)
})

test('a file that failed as a whole, a run without results and a step are failures too', async () => {
  const broken = { name: 'test/unit/b.test.ts', message: 'SyntaxError: what\n    at once' }
  const one = await sum([run([passedTest], broken)])
  expect(one).toMatchObject({ code: 1 })
  expect(one.lines.slice(-2)).toEqual(['FAILED test/unit/b.test.ts: SyntaxError: what', '1 passed, 1 failed'])
  expect(await sum([run([passedTest]), undefined])).toEqual({ code: 1, lines: ['1 passed, 1 failed'] })
  expect(await sum([run([passedTest])], 'Lint')).toEqual({ code: 1, lines: ['FAILED Lint', '1 passed, 1 failed'] })
})

test('what failed outside the tests is told from the log of the run, which alone has it', async () => {
  const folder = await mkdtemp(path.join(tmpdir(), 'millrace-log-'))
  onTestFinished(() => rm(folder, { recursive: true }))
  const tell = async (name: string, log: string) => {
    await writeFile(path.join(folder, name), log)
    return sum([run([passedTest])], `All tests\t${path.join(folder, name)}`)
  }
  const unhandled = await tell(
    'unhandled',
    ' ✓ holds\n\n⎯⎯ Unhandled Errors ⎯⎯\n\n\u001b[31mVitest caught 1 unhandled error during the test run.\u001b[39m\n' +
      '\n⎯⎯ Uncaught Exception ⎯⎯\nError: Connection terminated\n    at here\n',
  )
  expect(unhandled.lines.slice(-2)).toEqual(['FAILED All tests: Error: Connection terminated', '1 passed, 1 failed'])
  expect(unhandled.lines.join('\n')).toContain('    at here')
  const closing = await tell('closing', ' ✓ holds\nerror during close Error: ENOTEMPTY\n    at there\n')
  expect(closing.lines.slice(-2)).toEqual([
    'FAILED All tests: error during close Error: ENOTEMPTY',
    '1 passed, 1 failed',
  ])
  expect((await tell('silent', ' ✓ holds\n')).lines).toEqual(['FAILED All tests', '1 passed, 1 failed'])
})

test('without a failure there is the count alone; without a test that passed it is none', async () => {
  expect(await sum([run([passedTest]), run([passedTest])])).toEqual({ code: 0, lines: ['2 passed, 0 failed'] })
  expect(await sum([run([])])).toEqual({ code: 1, lines: ['0 passed, 0 failed'] })
})
