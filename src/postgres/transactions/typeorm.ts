import { MillraceError } from '../../core/errors.ts'
import type { Sql, SqlResult } from '../sql.ts'
import type { TransactionAdapter } from '../transaction.ts'

interface QueryRunner {
  readonly isTransactionActive: boolean
  query(text: string, params: unknown[], structured: true): Promise<{ records: unknown[]; affected?: number }>
}

/**
 * TypeORM on `pg`: the manager that `dataSource.transaction(async (manager) => …)` gives, a query runner after
 * `startTransaction()`, or its manager. Whatever is not in a transaction is refused.
 */
export const typeormTransaction: TransactionAdapter = {
  recognise(value) {
    const given = value as { createQueryBuilder?: unknown; isTransactionActive?: unknown; queryRunner?: unknown }
    if (typeof given.createQueryBuilder !== 'function' && typeof given.isTransactionActive !== 'boolean')
      return undefined
    const runner = (typeof given.isTransactionActive === 'boolean' ? given : given.queryRunner) as
      QueryRunner | undefined
    if (runner?.isTransactionActive === true) return fromQueryRunner(runner)
    return new MillraceError(
      runner === undefined ? 'APPEND_POOL_GIVEN' : 'APPEND_NOT_IN_TRANSACTION',
      'append was given something of TypeORM that is in no transaction. Give it the manager of one, before it ends: ' +
        'await dataSource.transaction(async (manager) => { …; await outbox.append(manager, event) }).',
    )
  },
}

function fromQueryRunner(runner: QueryRunner): Sql {
  return {
    async query(text, params = []): Promise<SqlResult> {
      const { affected = null, records } = await runner.query(text, params, true)
      return { rows: records, rowCount: affected }
    },
  }
}
