/**
 * How fast the WAL is drained into nothing: our stream against `pg_recvlogical` in binary to /dev/null, on the same rows.
 * Run by hand:
 *
 *     node bench/wal.ts [rows, 1000000] [15|18] [rows per transaction, 100] [runs, 3]
 *
 * `pg_recvlogical` is looked for beside PostgreSQL's other programs; without it only our own figures are printed. Our
 * clock starts at the first event and ends with the last commit; that of pg_recvlogical includes the start of its process.
 * So does "whole": from before the connection to the last commit.
 */
import { execFile } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import { promisify } from 'node:util'
import pg from 'pg'
import { systemClock } from '../src/core/clock.ts'
import { createSlot } from '../src/outbox-relay/capture/replication/slot.ts'
import { formatWalPosition, parseWalPosition } from '../src/outbox-relay/capture/replication/wal-position.ts'
import type { WalSink } from '../src/outbox-relay/capture/replication/wal-sink.ts'
import { WalStream } from '../src/outbox-relay/capture/replication/wal-stream.ts'
import { migrate } from '../src/postgres/migrator.ts'
import { startPostgres } from '../src/testing/services/index.ts'

const [rowsText = '1000000', versionText = '15', perTransactionText = '100', runsText = '3'] = process.argv.slice(2)
const rows = Number(rowsText)
const perTransaction = Number(perTransactionText)
const SLOT = 'bench'

/** It sends no status that would move the slot. */
// prettier-ignore
const RECVLOGICAL_OPTIONS = [
  '--start', '--no-loop', '-f', '/dev/null', '-F', '0', '-s', '0',
  '-o', 'proto_version=1', '-o', 'publication_names=bench', '-o', 'binary=true', '-o', 'messages=true',
]

/** Clock ticks a second in /proc, on every Linux that matters. */
const TICKS = 100

const server = await startPostgres({
  settings: { max_wal_size: '16GB', shared_buffers: '2GB' },
  version: versionText === '18' ? 18 : 15,
})
const pool = new pg.Pool({ connectionString: server.url })
try {
  await migrate(pool)
  await pool.query(
    `create publication bench for table outbox.record with (publish = 'insert', publish_via_partition_root = true)`,
  )
  await createSlot({ clock: systemClock, pool, slot: SLOT })
  await fill()
  const { rows: at } = await pool.query<{ lsn: string }>('select pg_current_wal_flush_lsn()::text as lsn')
  const target = at[0]?.lsn as string
  console.log(`PostgreSQL ${server.version}, ${rows} rows of 1 KB, ${perTransaction} a transaction`)
  const recvlogical = findRecvlogical()
  for (let run = 1; run <= Number(runsText); run++) {
    const ours = await drain(parseWalPosition(target))
    console.log(
      `ours            ${rate(ours.seconds)} rows/s (whole ${rate(ours.whole)}), node ${((ours.cpuSeconds / rows) * 1e6).toFixed(2)} us/row, ` +
        `walsender ${((ours.walsenderSeconds / rows) * 1e6).toFixed(2)} s per million rows, peak RSS ${Math.round(process.resourceUsage().maxRSS / 1024)} MiB`,
    )
    if (recvlogical === undefined) continue
    const began = performance.now()
    const options = ['-d', server.url, '-S', SLOT, '--endpos', target]
    await promisify(execFile)(recvlogical, [...RECVLOGICAL_OPTIONS, ...options]).catch((error: Error) =>
      console.log(error.message),
    )
    console.log(`pg_recvlogical  ${rate((performance.now() - began) / 1000)} rows/s`)
    await waitFree()
    await recreateIfMoved()
  }
} finally {
  await pool.end()
  await server.dispose()
}

function rate(seconds: number): string {
  return Math.round(rows / seconds)
    .toString()
    .padStart(7)
}

/** The slot is copied before the data is written, so that every run reads the same. */
async function recreateIfMoved(): Promise<void> {
  await pool.query('select pg_drop_replication_slot($1)', [SLOT])
  await pool.query('select pg_copy_logical_replication_slot($1, $2)', [`${SLOT}_origin`, SLOT])
}

async function waitFree(): Promise<void> {
  const text = 'select from pg_replication_slots where slot_name = $1 and active'
  while ((await pool.query(text, [SLOT])).rowCount !== 0) await new Promise((resolve) => setTimeout(resolve, 50))
}

async function fill(): Promise<void> {
  await pool.query('select pg_copy_logical_replication_slot($1, $2)', [SLOT, `${SLOT}_origin`])
  await pool.query(`
    create procedure fill(rows integer, per_transaction integer) language plpgsql as $$
    begin
      for i in 1 .. rows / per_transaction loop
        insert into outbox.record (shard, id, topic, key, type, payload, headers)
        select outbox.shard_of('key-' || (n % 10000)), outbox.new_id(), 'orders', 'key-' || (n % 10000), 'order.changed',
               decode(repeat('ab', 1000), 'hex'), '{}'
        from generate_series(i * per_transaction, (i + 1) * per_transaction - 1) n;
        commit;
      end loop;
    end $$`)
  await pool.query(`call fill(${rows}, ${perTransaction})`)
  await pool.query('checkpoint')
}

interface Figures {
  readonly cpuSeconds: number
  readonly seconds: number
  readonly walsenderSeconds: number
  readonly whole: number
}

function drain(target: bigint): Promise<Figures> {
  return new Promise((resolve, reject) => {
    const opening = performance.now()
    let began = 0
    let cpu = process.cpuUsage()
    let seen = 0
    let bytes = 0
    let stream: WalStream
    let figures: Figures | undefined
    const finish = (): void => {
      if (figures !== undefined) return
      const { system, user } = process.cpuUsage(cpu)
      const now = performance.now()
      figures = {
        cpuSeconds: (system + user) / 1e6,
        seconds: (now - began) / 1000,
        walsenderSeconds: cpuOf(stream.processId),
        whole: (now - opening) / 1000,
      }
      void stream.close()
    }
    const sink: WalSink = {
      onBegin: () => {
        if (seen !== 0) return
        began = performance.now()
        cpu = process.cpuUsage()
      },
      onCommit: () => {
        if (seen >= rows) finish()
      },
      onKeepalive: () => {},
      onLogicalMessage: () => {},
      onMessage: (message, _tx, _shard, size) => {
        seen++
        bytes += size + message.seq.length
      },
      onRelation: () => {},
    }
    const run = async (): Promise<Figures> => {
      stream = await WalStream.open({
        clock: systemClock,
        pool,
        publication: 'bench',
        schema: 'outbox',
        sink,
        slot: SLOT,
      })
      stream.resume()
      const error = await stream.ended
      await stream.close()
      if (error !== undefined || figures === undefined)
        throw error ?? new Error(`ended before ${formatWalPosition(target)}`)
      if (bytes < rows * 1000) throw new Error('rows are missing')
      return figures
    }
    run().then(resolve, reject)
  })
}

/** Processor seconds of a process so far, user and system. */
function cpuOf(pid: number): number {
  const fields = readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1]?.split(' ') as string[]
  return (Number(fields[11]) + Number(fields[12])) / TICKS
}

function findRecvlogical(): string | undefined {
  return ['18', '17', '16', '15'].map((major) => `/usr/lib/postgresql/${major}/bin/pg_recvlogical`).find(existsSync)
}
