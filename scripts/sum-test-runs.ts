/**
 * Sums up runs of vitest for the last line of a CI run: `sum-test-runs.ts <results.json>… -- <failed step>…`.
 * A run without results, or one that failed without a failed test, counts as a failure, as does a failed step that is
 * no run. Exits 1 when anything failed.
 */
import { readFileSync } from 'node:fs'

interface Results {
  readonly numFailedTests: number
  readonly numPassedTests: number
  readonly numPendingTests: number
  readonly success: boolean
}

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
  failed += results === undefined ? 1 : Math.max(results.numFailedTests, results.success ? 0 : 1)
}
// Whatever failed outside a test must not read as "0 failed".
failed = Math.max(failed, steps.length)
if (skipped > 0) console.log(`${skipped} skipped`)
console.log(`${passed} passed, ${failed} failed`)
process.exitCode = failed > 0 || passed === 0 ? 1 : 0

function read(file: string): Results | undefined {
  try {
    return JSON.parse(readFileSync(file, 'utf8')) as Results
  } catch {
    return undefined
  }
}
