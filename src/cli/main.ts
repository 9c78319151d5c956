#!/usr/bin/env node
/**
 * The command line, `millrace`: a table of commands (`run-cli.ts`), each a file of its own and loaded when it is asked
 * for; flags over environment, all problems at once, exit codes as a contract. This file is the `bin` and nothing else:
 * it hands the process to the table, and is never imported. What runs for long lives in `src/daemon`.
 */
import { createInterface } from 'node:readline/promises'
import { endWithNpx } from './launcher.ts'
import { DAEMON_NODE_FLAGS, runUnder } from './node-flags.ts'
import { nodeTooOld } from './node-version.ts'
import { runCli } from './run-cli.ts'
import { muteWarnings } from './warnings.ts'

const tooOld = nodeTooOld()
if (tooOld !== undefined) {
  process.stderr.write(`${tooOld}\n`)
  process.exit(1)
}
if (process.argv[2] === 'relay') {
  runUnder(DAEMON_NODE_FLAGS, process.env)
  endWithNpx(process.env)
}
muteWarnings('TimeoutNegativeWarning')
// Whoever reads may go, as `head` does: the work is done all the same, and what is left to say is said to nobody.
for (const output of [process.stdout, process.stderr]) output.on('error', () => {})
const code = await runCli(process.argv.slice(2), {
  environment: process.env,
  out: (text) => process.stdout.write(text),
  err: (text) => process.stderr.write(text),
  ...(process.stdin.isTTY && process.stderr.isTTY ? { ask } : {}),
})
// A client that will not let go of its socket must not keep the process: leave as soon as the output is out.
process.stderr.write('', () => process.stdout.write('', () => process.exit(code)))

async function ask(question: string): Promise<string> {
  const terminal = createInterface({ input: process.stdin, output: process.stderr })
  try {
    return await terminal.question(question)
  } finally {
    terminal.close()
  }
}
