import type { PgClient, PgPool } from './sql.ts'
import { takeClient } from './take-client.ts'

/** A connection taken out of the pool for long. */
export interface PgSession {
  readonly client: PgClient
  /** Closes the connection rather than giving it back with its settings; what waits for it is rejected. Idempotent. */
  close(): void
  /** Calls back once when the connection is lost, also while nobody waits for it; not after `close`. */
  onLost(callback: () => void): void
}

/** Takes a connection. When it is lost its next statement says so, and `onLost` at once. */
export async function takeSession(pool: PgPool): Promise<PgSession> {
  const client = await takeClient(pool)
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
  return {
    client,
    close() {
      if (closed) return
      closed = true
      client.release(true)
    },
    onLost(callback) {
      if (lost) callback()
      else callbacks.push(callback)
    },
  }
}

/** Applies settings to the connection, name by name, for as long as it lasts. */
export async function configure(session: PgSession, settings: Readonly<Record<string, string>>): Promise<void> {
  await session.client.query(
    'select set_config(s.name, s.value, false) from unnest($1::text[], $2::text[]) s (name, value)',
    [Object.keys(settings), Object.values(settings)],
  )
}
