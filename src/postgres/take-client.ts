import type { PgClient, PgPool } from './sql.ts'

/** What a `pg.Pool` has beyond the port. */
interface PoolEvents {
  on?(event: 'connect' | 'error', listener: (subject: PgClient) => void): unknown
}

const guarded = new WeakSet<PgPool>()

/**
 * Takes a client out of the pool, whose loss at any moment ends no process: {@link outliveLostClients}. Whoever uses the
 * client learns of the loss from its next statement.
 */
export function takeClient(pool: PgPool): Promise<PgClient> {
  outliveLostClients(pool)
  return pool.connect()
}

/**
 * Keeps the loss of a connection from ending the process. Whoever needs the connection learns of it from the next statement.
 *
 * - Each client that the pool makes from now on has a listener of errors. Without one a connection that Postgres ends in the
 *   moment in which it is made ends the process: `pg` reads the greeting and the farewell at once, before the promise of the
 *   pool is answered.
 * - The pool has one, too. It is told of every idle client that Postgres ends, also of one that it is closing itself, even
 *   after its own `end`, and without a listener that ends the process. Other listeners hear of it all the same.
 *
 * Idempotent.
 */
export function outliveLostClients(pool: PgPool): void {
  if (guarded.has(pool)) return
  guarded.add(pool)
  const events = pool as PoolEvents
  events.on?.('connect', (client) => void client.on('error', ignore))
  events.on?.('error', ignore)
}

function ignore(): void {}
