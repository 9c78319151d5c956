import type { PgClient, SqlResult } from './sql.ts'

/**
 * The client for callers that do not wait for each other: a statement is sent when the one before it was answered. `pg`
 * queues them too, but will not for ever.
 */
export function clientInTurn(client: PgClient): PgClient {
  let last: Promise<unknown> = Promise.resolve()
  return {
    on: (event, listener) => client.on(event, listener),
    query(text: string, params?: unknown[]): Promise<SqlResult> {
      const answer = last.then(() => client.query(text, params))
      last = answer.catch(() => {})
      return answer
    },
    release: (destroy) => client.release(destroy),
    removeListener: (event, listener) => client.removeListener(event, listener),
  }
}
