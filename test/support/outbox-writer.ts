/** Writes to the outbox as another language would: through the SQL function, inside transactions of its own. */
import pg from 'pg'

/** Appends one event inside whatever transaction the client is in. */
export async function appendSql(
  client: pg.Client | pg.PoolClient | pg.Pool,
  key: string | null,
  n: number,
  topic = 'orders',
): Promise<string> {
  const payload = Buffer.from(JSON.stringify({ key, n }))
  const { rows } = await client.query('select outbox.append($1, $2, $3, $4) as id', [
    topic,
    key,
    'order.changed',
    payload,
  ])
  return rows[0].id
}

/** A client inside a transaction, for a test that commits when it wants. */
export async function openTransaction(url: string): Promise<pg.Client> {
  const client = new pg.Client({ connectionString: url })
  client.on('error', () => {})
  await client.connect()
  await client.query('begin')
  return client
}

/** What an event of these writers says. */
export interface Written {
  readonly key: string
  readonly n: number
}

/** Reads it back. */
export function read(payload: Buffer): Written {
  return JSON.parse(payload.toString('utf8')) as Written
}
