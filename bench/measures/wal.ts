/**
 * The WAL through the whole relay into a broker that does nothing, against `pg_recvlogical` in binary to /dev/null, on
 * the same rows. Both clocks include the start of the stream; that of pg_recvlogical the start of its process, too.
 */
import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import type { Dataset } from '../stage/dataset.ts'
import type { Measure } from '../stage/measure.ts'
import { findProgram } from '../stage/programs.ts'
import { processorSeconds } from '../stage/processor-time.ts'
import { type Row, atLeast, atMost, fact, perSecond, ratioOf, skipped } from '../stage/row.ts'
import { inTurns, medianOf } from '../stage/turns.ts'

const WHAT = 'WAL to a null broker against pg_recvlogical, binary, to /dev/null'

export const wal: Measure = {
  name: 'wal',
  async run(stage) {
    const dataset = await stage.dataset('main')
    const program = findProgram('pg_recvlogical')
    const relay = (): Promise<{ seconds: number; walsender: number | undefined; cpu: number }> =>
      stage.drain('main', { capture: 'replication', target: 'null' }).then((drain) => ({
        cpu: drain.cpuPer100k,
        seconds: drain.wholeSeconds,
        walsender: drain.walsenderPerMillion,
      }))
    const bare = async (): Promise<{ seconds: number; walsender: number | undefined; cpu: number }> => {
      if (program === undefined) return { cpu: 0, seconds: Number.NaN, walsender: undefined }
      return { cpu: 0, ...(await recvlogical(program, dataset)) }
    }
    const drains = await inTurns(stage.options.rounds, { bare, relay })
    const [ours, theirs] = [drains.relay, drains.bare].map(
      (runs) => dataset.records / medianOf(runs, ({ seconds }) => seconds),
    ) as [number, number]
    const rows: Row[] = [
      program === undefined
        ? skipped(WHAT, `${perSecond(ours)}; there is no pg_recvlogical on this machine`)
        : atLeast(WHAT, ratioOf(ours, theirs), ours / theirs, 1.5),
    ]
    const seconds = medianOf(drains.relay, ({ walsender }) => walsender ?? Number.NaN)
    if (Number.isNaN(seconds)) rows.push(skipped('walsender CPU per million rows', 'no /proc'))
    else rows.push(atMost('walsender CPU per million rows', `${seconds.toFixed(2)} s`, seconds, 3.5, ' s'))
    const bareSeconds = medianOf(drains.bare, ({ walsender }) => walsender ?? Number.NaN)
    if (!Number.isNaN(bareSeconds)) rows.push(fact('… that sends to pg_recvlogical', `${bareSeconds.toFixed(2)} s`))
    const cpu = medianOf(drains.relay, (drain) => drain.cpu)
    rows.push(fact('relay CPU per 100k events, WAL to a null broker', `${cpu.toFixed(2)} s`))
    return rows
  },
}

/** It sends no status that would move the slot. */
const TO_NOTHING = ['--start', '--no-loop', '-f', '/dev/null', '-F', '0', '-s', '0']

async function recvlogical(
  program: string,
  dataset: Dataset,
): Promise<{ readonly seconds: number; readonly walsender: number | undefined }> {
  const slot = `${dataset.slot.slice(0, 50)}_bare`
  await dataset.copySlot(slot)
  const options = ['proto_version=1', `publication_names=${dataset.publication}`, 'binary=true', 'messages=true']
  const began = performance.now()
  const where = ['-d', dataset.databaseUrl, '-S', slot, '--endpos', dataset.endLsn]
  const how = options.flatMap((option) => ['-o', option])
  const ended = promisify(execFile)(program, [...TO_NOTHING, ...where, ...how]).then(() => performance.now())
  const walsender = await senderSeconds(dataset, slot, ended)
  const seconds = ((await ended) - began) / 1000
  await dataset.dropSlot(slot)
  return { seconds, walsender: walsender === undefined ? undefined : (walsender / dataset.records) * 1e6 }
}

/** What the server's process took that sends from the slot, looked at until it is gone. */
async function senderSeconds({ pool }: Dataset, slot: string, ended: Promise<unknown>): Promise<number | undefined> {
  let running = true
  const stop = (): void => void (running = false)
  ended.then(stop, stop)
  let pid: number | undefined
  let seconds: number | undefined
  while (running) {
    if (pid === undefined) {
      const text = 'select active_pid as pid from pg_replication_slots where slot_name = $1'
      pid = (await pool.query<{ pid: number | null }>(text, [slot])).rows[0]?.pid ?? undefined
    } else {
      seconds = processorSeconds(pid) ?? seconds
    }
    await new Promise((resolve) => setTimeout(resolve, 10))
  }
  return seconds
}
