import type { Row } from './row.ts'
import type { DrainFigures } from './stage.ts'
import { medianOf } from './turns.ts'

/** Processor seconds of the relay per 100k events: few, or not many more than those of the bare publisher. */
export function lean(
  what: string,
  relay: readonly DrainFigures[],
  bare: readonly DrainFigures[],
  barename: string,
): Row {
  const [ours, theirs] = [relay, bare].map((runs) => medianOf(runs, (drain) => drain.cpuPer100k)) as [number, number]
  return {
    what,
    figure: `${ours.toFixed(2)} s, ${(ours / theirs).toFixed(2)} × ${barename} (${theirs.toFixed(2)} s)`,
    goal: '≤ 1 s, or ≤ 1.3 ×',
    met: ours <= 1 || ours <= 1.3 * theirs,
  }
}
