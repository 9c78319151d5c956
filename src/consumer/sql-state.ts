/** The SQLSTATE of an error from Postgres, also when a library has wrapped it (drizzle does). */
export function sqlState(error: unknown): string | undefined {
  let current = error
  for (let depth = 0; depth < 5 && current instanceof Error; depth++) {
    const { code } = current as { code?: unknown }
    if (typeof code === 'string' && /^[0-9A-Z]{5}$/.test(code)) return code
    current = current.cause
  }
  return undefined
}

/** A serialisation failure or a deadlock: nobody's fault, and the same transaction may succeed at once. */
export function isConflict(error: unknown): boolean {
  const state = sqlState(error)
  return state === '40001' || state === '40P01'
}

/**
 * The server ended the session because the transaction stood open too long (idle_in_transaction_session_timeout,
 * transaction_timeout): the handler's doing, and it would do it again.
 */
export function isOverstay(error: unknown): boolean {
  const state = sqlState(error)
  return state === '25P03' || state === '25P04'
}
