import { expect, test } from 'vitest'
import { TransactionGuard } from '../../src/consumer/transaction-guard.ts'
import type { PgClient } from '../../src/postgres/sql.ts'

class RecordingClient implements PgClient {
  readonly queries: unknown[] = []
  released = false

  query(...args: unknown[]): Promise<{ rows: unknown[] }> {
    this.queries.push(args[0])
    return Promise.resolve({ rows: [] })
  }

  release(): void {
    this.released = true
  }

  on(): void {}
  removeListener(): void {}
}

const MISUSED = { code: 'EFFECT_TRANSACTION_MISUSED' }

test('a handler cannot begin, end or replace the transaction it shares, however it writes it', async () => {
  const client = new RecordingClient()
  const { client: tx } = new TransactionGuard(client)
  const statements = ['begin', 'COMMIT', ' rollback', 'End;', 'abort', '-- so\ncommit', '/* a\n */ Start  Transaction']
  for (const text of [...statements, 'rollback work', 'rollback and chain', "prepare transaction 'x'"]) {
    await expect(tx.query(text), text).rejects.toMatchObject(MISUSED)
    await expect(tx.query({ text } as never), text).rejects.toMatchObject(MISUSED)
  }
  expect(() => tx.release()).toThrow(expect.objectContaining(MISUSED))
  expect([client.queries, client.released]).toEqual([[], false])
})

test('everything else passes through, savepoints among it, and the client keeps its class', async () => {
  const client = new RecordingClient()
  const { client: tx } = new TransactionGuard(client)
  const statements = [
    'savepoint a',
    'rollback to a',
    'rollback work to savepoint a',
    'release a',
    'select 1',
    '(select 2)',
  ]
  for (const text of [...statements, 'insert into commit_log default values', 'endpoints', 'call committed()']) {
    await tx.query(text)
  }
  expect(client.queries).toHaveLength(9)
  expect(tx).toBeInstanceOf(RecordingClient)
})

test('a query after the handler has ended is refused: it would land in the transaction of another message', async () => {
  const client = new RecordingClient()
  const guard = new TransactionGuard(client)
  guard.close()
  await expect(guard.client.query('select 1')).rejects.toMatchObject(MISUSED)
  expect(client.queries).toEqual([])
})
