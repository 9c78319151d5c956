import type { PgClient, PgPool } from './sql.ts'

/** A connection taken out of the pool for long, with settings of its own. */
export interface PgSession {
  readonly client: PgClient
  /** Calls back once when the connection is lost, also while nobody waits for it; not after `close`. */
  onLost(callback: () => void): void
  /** Closes the connection rather than giving it back with its settings. Idempotent. */
  close(): void
}

/**
 * Takes a connection and applies the settings. When it is lost its next statement says so, and `onLost` at
 * once.
 */
export async function openSession(pool: PgPool, settings: Readonly<Record<string, string>>): Promise<PgSession> {
  const client = await pool.connect()
  let closed = false
  let lost = false
  const callbacks: (() => void)[] = []
  const onLoss = (): void => {
    if (lost || closed) return
    lost = true
    for (const callback of callbacks) callback()
  }
  // Without a listener `pg` would end the process.
  client.on('error', onLoss)
  client.on('end', onLoss)
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
  const onLost = (callback: () => void): void => {
    if (lost) callback()
    else callbacks.push(callback)
  }
  return { client, close, onLost }
}
