import type { PgClient, PgPool } from './sql.ts'

/** What a `pg.Pool` has beyond the port. */
interface PoolEvents {
  on?(event: 'connect', listener: (client: PgClient) => void): unknown
}

const guarded = new WeakSet<PgPool>()

/**
 * Takes a client out of the pool. A connection that Postgres ends in the moment in which it is made, as a server does
 * that goes down, may be lost before the promise of the pool is answered: `pg` reads the greeting and the farewell at
 * once, and without a listener on the client ends the process. So each new client of the pool gets one as it is made;
 * whoever uses the client learns of the loss from its next statement.
 */
export function takeClient(pool: PgPool): Promise<PgClient> {
  if (!guarded.has(pool)) {
    guarded.add(pool)
    ;(pool as PoolEvents).on?.('connect', (client) => void client.on('error', ignore))
  }
  return pool.connect()
}

function ignore(): void {}
