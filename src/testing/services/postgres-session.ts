import type { Client } from 'pg'
import { delay, systemClock, withDeadline } from '../../core/clock.ts'
import { MillraceError } from '../../core/errors.ts'

const POLL_MS = 20
const CONNECT_MS = 5_000

/** Runs `work` over one connection of its own, as the superuser. */
export async function inSession<T>(url: string, work: (client: Client) => Promise<T>): Promise<T> {
  const { default: pg } = await import('pg').catch((cause: unknown) => {
    throw new MillraceError('PEER_MISSING', 'Standbys and restores need pg, which is not installed: npm i pg', {
      cause,
    })
  })
  const client = new pg.Client({ connectionString: url, connectionTimeoutMillis: CONNECT_MS })
  // A server that is killed meanwhile is told by the query.
  client.on('error', () => {})
  await client.connect()
  try {
    return await work(client)
  } finally {
    await withDeadline(systemClock, client.end(), CONNECT_MS, () => new Error('no goodbye')).catch(() => {})
  }
}

/** The first column of the first row. */
export function ask<T>(url: string, text: string, params: unknown[] = []): Promise<T | undefined> {
  return inSession(url, (client) => first<T>(client, text, params))
}

/**
 * Asks until the answer is true. Rejects after `timeoutMs` with what was waited for; a server that cannot be asked is
 * asked again.
 */
export async function until(
  url: string,
  what: string,
  timeoutMs: number,
  text: string,
  params: unknown[] = [],
): Promise<void> {
  const end = systemClock.monotonic() + timeoutMs
  let last: unknown
  do {
    try {
      const met = await inSession(url, async (client) => {
        do {
          if ((await first(client, text, params)) === true) return true
          await delay(systemClock, POLL_MS)
        } while (systemClock.monotonic() < end)
        return false
      })
      if (met) return
      last = undefined
    } catch (error) {
      last = error
      await delay(systemClock, POLL_MS)
    }
  } while (systemClock.monotonic() < end)
  throw new MillraceError('SERVICE_UNAVAILABLE', `${what}: not within ${timeoutMs} ms`, { cause: last })
}

async function first<T>(client: Client, text: string, params: unknown[]): Promise<T | undefined> {
  const { rows } = await client.query<[T]>({ rowMode: 'array', text, values: params } as never)
  return rows[0]?.[0]
}
