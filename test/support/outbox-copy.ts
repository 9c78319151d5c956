/**
 * Copies an outbox as dump and restore do: the schema is made by migrate, the rows travel as text, one transaction a
 * table, and the sequences are set. The npm servers bring no pg_dump.
 */
import pg from 'pg'

/** What a copy is like. */
export interface CopyOptions {
  /** Which tables. Default: all of the outbox. */
  readonly only?: readonly string[]
  /** Set the sequences as well, as pg_dump does and logical replication does not. Default: true. */
  readonly sequences?: boolean
}

/** Copies the rows of the migrated outbox at `from` over those of the migrated outbox at `to`. */
export async function copyOutbox(from: pg.Pool, to: pg.Pool, options: CopyOptions = {}): Promise<void> {
  const { only, sequences = true } = options
  for (const { table, columns } of await tablesOf(from)) {
    if (only !== undefined && !only.includes(table)) continue
    const { rows } = await from.query({
      text: `select ${columns.map(asText).join(', ')} from outbox.${table}`,
      rowMode: 'array',
    })
    await withClient(to, async (client) => {
      await client.query('begin')
      await client.query(`delete from outbox.${table}`)
      for (const row of rows as unknown[][]) {
        const values = columns.map((column, i) => `$${i + 1}::text::${column.type}`).join(', ')
        await client.query(
          `insert into outbox.${table} (${columns.map(({ name }) => name).join(', ')}) overriding system value values (${values})`,
          row,
        )
      }
      await client.query('commit')
    })
  }
  if (!sequences) return
  for (const [sequence, table, column] of [
    ['record_seq_seq', 'record', 'seq'],
    ['checkpoint_n_seq', 'checkpoint', 'n'],
  ]) {
    const { rows } = await from.query(`select coalesce(max(${column}), 1)::text as last from outbox.${table}`)
    await to.query('select setval($1, $2)', [`outbox.${sequence}`, rows[0].last])
  }
}

interface Column {
  readonly name: string
  readonly type: string
}

const asText = ({ name }: Column): string => `${name}::text`

/** The tables that hold rows, each with its columns, in the order of their names, as pg_dump takes them. */
async function tablesOf(pool: pg.Pool): Promise<{ table: string; columns: Column[] }[]> {
  const { rows } = await pool.query(
    `select c.relname as "table",
            json_agg(json_build_object('name', quote_ident(a.attname), 'type', format_type(a.atttypid, a.atttypmod))
                     order by a.attnum) as columns
     from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
     where c.relnamespace = 'outbox'::regnamespace and c.relkind in ('r', 'p') and not c.relispartition
       and c.relname <> 'migration'
     group by c.relname order by c.relname`,
  )
  return rows as { table: string; columns: Column[] }[]
}

async function withClient(pool: pg.Pool, work: (client: pg.PoolClient) => Promise<void>): Promise<void> {
  const client = await pool.connect()
  let done = false
  try {
    await work(client)
    done = true
  } finally {
    client.release(!done)
  }
}

/** Uses up transaction ids. */
export async function burnTransactionIds(pool: pg.Pool, count: number): Promise<void> {
  await pool.query(`do $$ begin
    create temp table burnt (i int);
    for i in 1..${count} loop begin insert into burnt values (i); exception when others then raise; end; end loop;
    drop table burnt; end $$`)
}
