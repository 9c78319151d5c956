import { spawn } from 'node:child_process'
import { existsSync } from 'node:fs'
import { createInterface } from 'node:readline'
import { expect, onTestFinished, test } from 'vitest'
import { allGone, childrenOf } from '../../src/testing/services/processes.ts'
import { describeWith, type Need } from '../support/services.ts'

interface Report {
  readonly children: readonly number[]
  readonly folder: string
  readonly pid: number
}

/** A process that starts a server, says where, and then waits for its end. */
async function parentOf(start: string): Promise<{ readonly die: () => void; readonly report: Report }> {
  const index = new URL('../../src/testing/services/index.ts', import.meta.url).href
  const processes = new URL('../../src/testing/services/processes.ts', import.meta.url).href
  const program = `
    import { dirname } from 'node:path'
    import * as services from '${index}'
    import { childrenOf } from '${processes}'
    const server = await services.${start}()
    const report = { pid: server.pid, children: await childrenOf(server.pid), folder: dirname(server.logFile) }
    console.log(JSON.stringify(report))
    setInterval(() => {}, 1000)`
  const parent = spawn(process.execPath, ['--input-type=module-typescript', '--eval', program], {
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  onTestFinished(() => void parent.kill('SIGKILL'))
  for await (const line of createInterface(parent.stdout)) {
    return { report: JSON.parse(line) as Report, die: () => void parent.kill('SIGKILL') }
  }
  throw new Error(`${start} never started`)
}

/** Stops a process, unless it has gone: the one that answered the first question may be on its way out. */
function pause(pid: number): void {
  try {
    process.kill(pid, 'SIGSTOP')
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error
  }
}

const SERVERS: readonly (readonly [Need, string])[] = [
  ['private postgres18', 'startPostgres'],
  ['private nats', 'startNats'],
  ['private kafka', 'startKafka'],
]

for (const [need, start] of SERVERS) {
  describeWith(need, `a run that dies by SIGKILL (${start})`, () => {
    test('leaves no process and no file behind', async () => {
      const { report, die } = await parentOf(start)
      expect(await childrenOf(process.pid)).not.toContain(report.pid)
      expect(existsSync(report.folder)).toBe(true)
      die()
      expect(await allGone([report.pid, ...report.children], 60_000)).toBe(true)
      await expect.poll(() => existsSync(report.folder), { timeout: 30_000 }).toBe(false)
    })

    test('leaves nothing behind when the server was paused', async () => {
      const { report, die } = await parentOf(start)
      for (const pid of [report.pid, ...report.children]) pause(pid)
      die()
      expect(await allGone([report.pid, ...report.children], 60_000)).toBe(true)
      await expect.poll(() => existsSync(report.folder), { timeout: 30_000 }).toBe(false)
    })
  })
}
