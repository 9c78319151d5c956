/**
 * What an event costs the business transaction: an UPDATE of an account by itself, with the library's append, and with
 * an append that reads from the UPDATE in one statement. By pgbench with prepared statements, 16 clients, no relay.
 */
import { execFile } from 'node:child_process'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import os from 'node:os'
import path from 'node:path'
import { promisify } from 'node:util'
import { AppendStatement } from '../../src/producer/append-statement.ts'
import { resolveSchemas } from '../../src/postgres/schemas.ts'
import type { Measure } from '../stage/measure.ts'
import { findProgram } from '../stage/programs.ts'
import { type Row, atLeast, fact, perSecond, skipped } from '../stage/row.ts'
import { inTurns, medianOf } from '../stage/turns.ts'

const WRITERS = 16
const ACCOUNTS = 10_000
const PAYLOAD = '5a'.repeat(1000)
const UPDATE = 'update bench_account set balance = balance + 1 where id = :id'

export const append: Measure = {
  name: 'append',
  async run(stage) {
    const program = findProgram('pgbench')
    if (program === undefined) return [skipped('an append in a business transaction', 'there is no pgbench here')]
    const seconds = Math.max(2, Math.round(6 * stage.options.scale))
    const { databaseUrl, pool } = await stage.dataset('empty')
    await pool.query(
      'create table bench_account (id integer primary key, balance bigint not null) with (fillfactor = 50)',
    )
    await pool.query('insert into bench_account select n, 0 from generate_series(1, $1) n', [ACCOUNTS])
    await pool.query('vacuum analyze bench_account')
    const folder = await mkdtemp(path.join(os.tmpdir(), 'millrace-bench-'))
    const run = async (name: string, script: string): Promise<number> => {
      const file = path.join(folder, `${name}.sql`)
      await writeFile(file, `\\set id random(1, ${ACCOUNTS})\n${script}\n`)
      const options = ['-n', '-M', 'prepared', '-c', String(WRITERS), '-j', '2', '-T', String(seconds), '-f', file]
      const { stdout } = await promisify(execFile)(program, [...options, databaseUrl])
      return Number(/tps = ([\d.]+)/.exec(stdout)?.[1])
    }
    try {
      const library = `begin;\n${UPDATE};\n${await libraryStatement()};\ncommit;`
      const tps = await inTurns(stage.options.rounds, {
        none: () => run('none', `begin;\n${UPDATE};\ncommit;`),
        roundTrip: () => run('roundTrip', `begin;\n${UPDATE};\nselect 1;\ncommit;`),
        library: () => run('library', library),
        sql: () => run('sql', `begin;\n${UPDATE};\n${SQL_APPEND};\ncommit;`),
        cte: () => run('cte', `${CTE};`),
      })
      const [none, roundTrip, withAppend, bySql, byCte] = [tps.none, tps.roundTrip, tps.library, tps.sql, tps.cte].map(
        (runs) => medianOf(runs, (one) => one),
      ) as [number, number, number, number, number]
      const against = (one: number): string => `${signed(one / none)} (${perSecond(one)} against ${perSecond(none)})`
      const rows: Row[] = [
        {
          ...atLeast('one append in a business transaction, 16 writers', against(withAppend), withAppend / none, 0.8),
          goal: '≥ -20 % tps',
        },
        fact('… a statement that does nothing in its place', against(roundTrip)),
        fact('… by the SQL function outbox.append', against(bySql)),
        { ...atLeast('… by one CTE statement', against(byCte), byCte / none, 1.15), goal: '≥ +15 % tps' },
      ]
      return rows
    } finally {
      await rm(folder, { force: true, recursive: true })
      await stage.drop('empty')
    }
  },
}

const SQL_APPEND = `select outbox.append('orders', 'account-' || :id, 'order.placed', '\\x${PAYLOAD}'::bytea)`

const CTE = `with u as (${UPDATE} returning id)
insert into outbox.record (shard, id, topic, key, type, payload, headers)
select outbox.shard_of('account-' || u.id), outbox.new_id(), 'orders', 'account-' || u.id, 'order.placed',
       '\\x${PAYLOAD}'::bytea, '{}' from u`

/** The statement that the library sends for one event, with its parameters in place. */
async function libraryStatement(): Promise<string> {
  let sent: { text: string; values: readonly unknown[] } | undefined
  const row = { headers: '{}', id: ID, key: KEY, payload: Buffer.alloc(1000, 'Z'), sizeBytes: 1000 }
  const transaction = {
    query: async (text: string, values: readonly unknown[] = []) => {
      sent = { text, values }
      return { rows: [] }
    },
  }
  const statement = new AppendStatement(resolveSchemas(undefined))
  await statement.run(() => transaction as never, [{ ...row, topic: 'orders', type: 'order.placed' }])
  if (sent === undefined) throw new Error('nothing was appended')
  const { text, values } = sent
  return text
    .replaceAll(/\$(\d+)/g, (_, n: string) => literal(values[Number(n) - 1]))
    .replaceAll(ID, "' || outbox.new_id() || '")
    .replaceAll(KEY, "account-' || :id || '")
}

const ID = '01980000-0000-7000-8000-000000000000'
const KEY = 'the-key'

/** In parentheses, because a cast follows. */
function literal(value: unknown): string {
  return `('${Buffer.isBuffer(value) ? `\\x${value.toString('hex')}` : String(value)}')`
}

function signed(ratio: number): string {
  const percent = (ratio - 1) * 100
  return `${percent < 0 ? '' : '+'}${percent.toFixed(0)} %`
}
