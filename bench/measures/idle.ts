/** What the daemon costs while nothing happens: `millrace relay` as it is, streaming and polling. */
import { spawn } from 'node:child_process'
import path from 'node:path'
import { DAEMON_NODE_FLAGS } from '../../src/cli/node-flags.ts'
import type { Measure } from '../stage/measure.ts'
import { processorSeconds } from '../stage/processor-time.ts'
import { type Row, atMost, skipped } from '../stage/row.ts'

const MAIN = path.join(import.meta.dirname, '..', '..', 'src', 'cli', 'main.ts')
const SETTLE_MS = 5000

export const idle: Measure = {
  name: 'idle',
  async run(stage) {
    const dataset = await stage.dataset('empty')
    const broker = await stage.url('jetstream')
    const rows: Row[] = []
    for (const capture of ['replication', 'polling'] as const) {
      await dataset.rewind(capture)
      const args = ['relay', '--database-url', dataset.databaseUrl, '--broker', broker, '--capture', capture]
      const daemon = spawn(
        process.execPath,
        [...DAEMON_NODE_FLAGS, '--disable-warning=TimeoutNegativeWarning', MAIN, ...args],
        {
          stdio: 'ignore',
        },
      )
      const gone = new Promise((resolve) => daemon.once('close', resolve))
      try {
        await pause(SETTLE_MS)
        const seconds = stage.options.full ? 60 : 10
        const [before, began] = [processorSeconds(daemon.pid ?? 0), performance.now()]
        await pause(seconds * 1000)
        const after = processorSeconds(daemon.pid ?? 0)
        const what = `CPU of an idle daemon, ${capture}`
        if (before === undefined || after === undefined) {
          rows.push(skipped(what, daemon.exitCode === null ? 'no /proc' : `it ended with ${daemon.exitCode}`))
          continue
        }
        const percent = ((after - before) / ((performance.now() - began) / 1000)) * 100
        rows.push(atMost(what, `${percent.toFixed(1)} % of a core`, percent, 0.99, ' %'))
      } finally {
        daemon.kill('SIGTERM')
        await gone
      }
    }
    await stage.drop('empty')
    return rows
  },
}

function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms))
}
