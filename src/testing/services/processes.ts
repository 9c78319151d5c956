/**
 * The table of the machine's processes, read without help from outside on Linux (small images have no `ps`) and by `ps`
 * elsewhere.
 */
import { execFile } from 'node:child_process'
import { readdir, readFile } from 'node:fs/promises'
import { promisify } from 'node:util'
import { delay, systemClock } from '../../core/clock.ts'

/** True while the process runs; false for a zombie, which only waits to be counted. */
export async function isAlive(pid: number): Promise<boolean> {
  try {
    process.kill(pid, 0)
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM'
  }
  if (process.platform !== 'linux') return true
  const entry = await readEntry(String(pid))
  return entry !== undefined && entry.state !== 'Z'
}

/** Resolves true as soon as none of the processes runs, false after `timeoutMs`. */
export async function allGone(pids: readonly number[], timeoutMs: number): Promise<boolean> {
  const end = systemClock.monotonic() + timeoutMs
  for (;;) {
    const alive = await Promise.all(pids.map(isAlive))
    if (!alive.includes(true)) return true
    if (systemClock.monotonic() >= end) return false
    await delay(systemClock, 10)
  }
}

/** The direct children of a process. */
export async function childrenOf(pid: number): Promise<number[]> {
  if (process.platform === 'linux') {
    const names = (await readdir('/proc')).filter((name) => /^\d+$/.test(name))
    const entries = await Promise.all(names.map(readEntry))
    return entries.flatMap((entry) => (entry?.parent === pid ? [entry.pid] : []))
  }
  const { stdout } = await promisify(execFile)('ps', ['-A', '-o', 'pid=,ppid='])
  return stdout.split('\n').flatMap((line) => {
    const [child, parent] = line.trim().split(/\s+/).map(Number)
    return parent === pid && child !== undefined ? [child] : []
  })
}

async function readEntry(pid: string): Promise<{ pid: number; state: string; parent: number } | undefined> {
  try {
    const stat = await readFile(`/proc/${pid}/stat`, 'latin1')
    // The name, in parentheses, may hold spaces and parentheses itself.
    const [state = '', parent] = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
    return { pid: Number(pid), state, parent: Number(parent) }
  } catch {
    return undefined
  }
}
