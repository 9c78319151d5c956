/**
 * Sums up runs of vitest for the last lines of a CI run: `sum-test-runs.ts <results.json>… -- <failed step>…`. The end of
 * a log is what people are shown, and often no more than that. So first come the details, the beginning of each failed
 * test's message, and after them, right before the line that counts, one short line for each step and test that failed.
 * A run without results, or one that failed without a failed test, counts as a failure, as does a failed step that is
 * no run. A step may bring its log, behind a tab: then an error outside any test, which the results do not hold (nobody
 * caught it, or the servers did not end), is shown as a failed test is. Exits 1 when anything failed.
 */
import { readFileSync } from 'node:fs'
import { relative } from 'node:path'
import { stripVTControlCharacters } from 'node:util'

interface Results {
  readonly numFailedTests: number
  readonly numPassedTests: number
  readonly numPendingTests: number
  readonly success: boolean
  readonly testResults: readonly TestFile[]
}

interface TestFile {
  readonly name: string
  readonly status: string
  readonly message: string
  readonly assertionResults: readonly {
    readonly fullName: string
    readonly status: string
    readonly failureMessages?: readonly string[] | null
  }[]
}

interface Failure {
  /** The file, and the test in it unless the file failed as a whole. */
  readonly where: string
  readonly message: string
}

/** How much of a failure's message the details have. */
const DETAIL_CHARS = 1500
/** How much of its first line the list at the end has. */
const LINE_CHARS = 200

/** How vitest's log says that something failed outside the tests. */
const OUTSIDE = /Unhandled (?:Errors?|Rejection)|Uncaught Exception|error during close|\[vitest-pool\]/

const args = process.argv.slice(2)
const files = args.slice(0, args.indexOf('--'))
const steps = args.slice(args.indexOf('--') + 1).map(stepOf)

let passed = 0
let failed = 0
let skipped = 0
const failures: Failure[] = []
for (const file of files) {
  const results = read(file)
  passed += results?.numPassedTests ?? 0
  skipped += results?.numPendingTests ?? 0
  failures.push(...(results?.testResults ?? []).flatMap(failuresOf))
  failed += results === undefined ? 1 : Math.max(results.numFailedTests, results.success ? 0 : 1)
}
// Whatever failed outside a test must not read as "0 failed".
failed = Math.max(failed, steps.length)
for (const { where, message } of [...failures, ...steps]) {
  if (message !== '') console.log(`FAILED ${where}\n${message.slice(0, DETAIL_CHARS)}\n`)
}
if (skipped > 0) console.log(`${skipped} skipped`)
for (const { where, message } of [...steps, ...failures]) {
  console.log(`FAILED ${where}${message === '' ? '' : `: ${firstLine(message)}`}`)
}
console.log(`${passed} passed, ${failed} failed`)
process.exitCode = failed > 0 || passed === 0 ? 1 : 0

function failuresOf({ name, status, message, assertionResults }: TestFile): Failure[] {
  const file = relative(process.cwd(), name)
  const failures = assertionResults
    .filter((test) => test.status === 'failed')
    .map(({ fullName, failureMessages }) => ({
      where: `${file} > ${fullName}`,
      message: (failureMessages ?? []).join('\n'),
    }))
  return status === 'failed' && failures.length === 0 ? [{ where: file, message }] : failures
}

/** A failed step, and the first error outside a test in its log. */
function stepOf(step: string): Failure {
  const [where = '', log] = step.split('\t')
  const lines = log === undefined ? [] : stripVTControlCharacters(readLog(log)).split('\n')
  const start = lines.findIndex((line) => OUTSIDE.test(line))
  if (start === -1) return { where, message: '' }
  // Headings, rules and advice come first; the error itself names its class.
  const error = lines.findIndex((line, i) => i >= start && /^\s*(?:\w*Error|error during close)\b/.test(line))
  return { where, message: lines.slice(error === -1 ? start : error).join('\n') }
}

function readLog(file: string): string {
  try {
    return readFileSync(file, 'utf8')
  } catch {
    return ''
  }
}

/** What the list shows of a message: its first line that says something, without colours. */
function firstLine(message: string): string {
  const lines = stripVTControlCharacters(message).split('\n')
  return (lines.find((line) => line.trim() !== '') ?? '').trim().slice(0, LINE_CHARS)
}

function read(file: string): Results | undefined {
  try {
    return JSON.parse(readFileSync(file, 'utf8')) as Results
  } catch {
    return undefined
  }
}
