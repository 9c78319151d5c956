import type { PgClient, PgPool } from './sql.ts'

/** What a `pg.Pool` has beyond the port. */
interface PoolEvents {
  on?(event: 'connect', listener: (client: PgClient) => void): unknown
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
 * Gives each client that the pool makes from now on a listener of errors. Without one a connection that Postgres ends in the
 * moment in which it is made ends the process: `pg` reads the greeting and the farewell at once, before the promise of the
 * pool is answered. So does one that Postgres ends while the pool is ending it. Idempotent.
 */
export function outliveLostClients(pool: PgPool): void {
  if (guarded.has(pool)) return
  guarded.add(pool)
  ;(pool as PoolEvents).on?.('connect', (client) => void client.on('error', ignore))
}

function ignore(): void {}
