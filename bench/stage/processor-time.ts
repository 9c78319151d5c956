import { readFileSync } from 'node:fs'

/** Clock ticks a second in /proc, on every Linux that matters. */
const TICKS = 100

/** Processor seconds of a process so far, user and system; undefined where there is no /proc. */
export function processorSeconds(pid: number): number | undefined {
  try {
    const fields = readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1]?.split(' ') as string[]
    return (Number(fields[11]) + Number(fields[12])) / TICKS
  } catch {
    return undefined
  }
}
