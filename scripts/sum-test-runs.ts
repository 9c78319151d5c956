/**
 * Sums up runs of vitest for the last lines of a CI run: `sum-test-runs.ts <results.json>… -- <failed step>…`. Each test
 * that failed is named once more with the beginning of its message, because the end of a log is what people are shown.
 * A run without results, or one that failed without a failed test, counts as a failure, as does a failed step that is
 * no run. Exits 1 when anything failed.
 */
import { readFileSync } from 'node:fs'
import { relative } from 'node:path'

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

/** How much of a failure's message is repeated. */
const MESSAGE_CHARS = 1500

const args = process.argv.slice(2)
const files = args.slice(0, args.indexOf('--'))
const steps = args.slice(args.indexOf('--') + 1)

let passed = 0
let failed = 0
let skipped = 0
for (const file of files) {
  const results = read(file)
  passed += results?.numPassedTests ?? 0
  skipped += results?.numPendingTests ?? 0
  for (const one of results?.testResults ?? []) nameFailures(one)
  failed += results === undefined ? 1 : Math.max(results.numFailedTests, results.success ? 0 : 1)
}
// Whatever failed outside a test must not read as "0 failed".
failed = Math.max(failed, steps.length)
if (skipped > 0) console.log(`${skipped} skipped`)
console.log(`${passed} passed, ${failed} failed`)
process.exitCode = failed > 0 || passed === 0 ? 1 : 0

function nameFailures({ name, status, message, assertionResults }: TestFile): void {
  const file = relative(process.cwd(), name)
  const failures = assertionResults.filter((test) => test.status === 'failed')
  for (const { fullName, failureMessages } of failures) {
    console.log(`FAILED ${file} > ${fullName}\n${(failureMessages ?? []).join('\n').slice(0, MESSAGE_CHARS)}`)
  }
  if (status === 'failed' && failures.length === 0) console.log(`FAILED ${file}\n${message.slice(0, MESSAGE_CHARS)}`)
}

function read(file: string): Results | undefined {
  try {
    return JSON.parse(readFileSync(file, 'utf8')) as Results
  } catch {
    return undefined
  }
}
