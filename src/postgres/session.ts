import type { PgClient, PgPool } from './sql.ts'

/** A connection taken out of the pool for long, with settings of its own. */
export interface PgSession {
  readonly client: PgClient
  /** Closes the connection rather than giving it back with its settings. Idempotent. */
  close(): void
}

/**
 * Takes a connection and applies the settings. When it is lost its next statement says so; until then nobody need
 * listen to it.
 */
export async function openSession(pool: PgPool, settings: Readonly<Record<string, string>>): Promise<PgSession> {
  const client = await pool.connect()
  // Without a listener `pg` would end the process; the statement that meets the loss tells it.
  client.on('error', () => {})
  let closed = false
  const close = (): void => {
    if (closed) return
    closed = true
    client.release(true)
  }
  try {
    for (const [name, value] of Object.entries(settings)) {
      await client.query('select set_config($1, $2, false)', [name, value])
    }
  } catch (error) {
    close()
    throw error
  }
  return { client, close }
}
