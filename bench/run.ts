/**
 * `npm run bench`: the speed table, as ratios within one run on one machine, against private real servers. It prints a
 * table, and with `--write` puts it first into bench/RESULTS.md.
 *
 *   --only a,b     these measures alone; `--only list` names them
 *   --full         the long way: ten million records waiting, ten minutes without a broker
 *   --rounds N     of each comparison, 3; the median counts
 *   --scale X      so many times the events, for a quick look: 0.1
 *   --profile      profiles of every child, and what took the time in each
 *   --write        into bench/RESULTS.md
 */
import { parseArgs } from 'node:util'
import { isMillraceError } from '../src/index.ts'
import { measures } from './measures/index.ts'
import { buildChildren } from './stage/built-children.ts'
import { Report } from './stage/report.ts'
import { Profiles } from './stage/profiles.ts'
import { type Row, failed, skipped } from './stage/row.ts'
import { Stage } from './stage/stage.ts'

const { values } = parseArgs({
  options: {
    full: { type: 'boolean', default: false },
    only: { type: 'string' },
    profile: { type: 'boolean', default: false },
    rounds: { type: 'string', default: '3' },
    scale: { type: 'string', default: '1' },
    write: { type: 'boolean', default: false },
  },
})
const only = values.only?.split(',')
const unknown = only?.find((name) => !measures.some((measure) => measure.name === name))
if (unknown !== undefined) {
  console.log(`measures: ${measures.map(({ name }) => name).join(', ')}`)
  process.exit(unknown === 'list' ? 0 : 2)
}
buildChildren()
const profiles = values.profile ? new Profiles() : undefined
const stage = new Stage({
  full: values.full,
  profile: profiles?.folder,
  rounds: Number(values.rounds),
  scale: Number(values.scale),
})
const report = new Report(stage.options)
try {
  report.heading((await stage.postgres()).version)
  for (const measure of measures) {
    if (only !== undefined && !only.includes(measure.name)) continue
    const began = performance.now()
    try {
      report.rows(await measure.run(stage))
    } catch (error) {
      report.rows([notMeasured(measure.name, error as Error)])
    }
    report.aside(`${measure.name}: ${Math.round((performance.now() - began) / 1000)} s`)
    profiles?.tell(measure.name)
  }
  report.end()
} finally {
  await stage.end()
}
if (values.write) report.write()

/** A server that this machine cannot start is left out; what breaks is a failure, and the others go on. */
function notMeasured(name: string, error: Error): Row {
  const why = error.message.split('\n')[0] ?? ''
  if (isMillraceError(error) && error.code === 'SERVICE_UNAVAILABLE') return skipped(name, why)
  console.error(error)
  process.exitCode = 1
  return failed(name, why)
}
