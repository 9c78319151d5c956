import pg from 'pg'
import { expect, test } from 'vitest'
import { openTransaction } from '../../src/postgres/transaction.ts'

const query = () => Promise.resolve({ rows: [] })
const connect = () => Promise.resolve()

test.each<[what: string, given: unknown, code: string]>([
  ['a pg pool', new pg.Pool(), 'APPEND_POOL_GIVEN'],
  ['a pool of another make', { query, connect }, 'APPEND_POOL_GIVEN'],
  ['a pg client that never began', new pg.Client(), 'APPEND_UNKNOWN'],
  ['a client outside a transaction', { query, getTransactionStatus: () => 'I' }, 'APPEND_NOT_IN_TRANSACTION'],
  ['a client in a failed transaction', { query, getTransactionStatus: () => 'E' }, 'APPEND_NOT_IN_TRANSACTION'],
  ['a drizzle database', { execute: query, select: query, transaction: query }, 'APPEND_POOL_GIVEN'],
  ['a database that begins transactions', { query, transaction: query }, 'APPEND_UNKNOWN_TRANSACTION'],
  ['a promise of a client', Promise.resolve({ query }), 'APPEND_UNKNOWN_TRANSACTION'],
  ['a string', 'begin', 'APPEND_UNKNOWN_TRANSACTION'],
  ['null', null, 'APPEND_UNKNOWN_TRANSACTION'],
  ['nothing', undefined, 'APPEND_UNKNOWN_TRANSACTION'],
  ['an object without a prototype', Object.create(null), 'APPEND_UNKNOWN_TRANSACTION'],
])('%s is refused where a transaction is expected', (what, given, code) => {
  // A client that never connected has no state yet; the server is asked, and answers.
  if (code === 'APPEND_UNKNOWN') expect(openTransaction(given), what).toBe(given)
  else expect(() => openTransaction(given)).toThrow(expect.objectContaining({ code }) as Error)
})

test.each<[what: string, given: object]>([
  ['a client in a transaction', { query, connect, getTransactionStatus: () => 'T' }],
  ['a client of pg before 8.19', { query, connect, escapeLiteral: String }],
  ['the tx of a handler', { query }],
])('%s is taken as it is', (_, given) => {
  expect(openTransaction(given)).toBe(given)
})

test('an unknown object is named by its class', () => {
  class EntityManager {}
  expect(() => openTransaction(new EntityManager())).toThrow('an object of class EntityManager')
  expect(() => openTransaction(Promise.resolve())).toThrow('await it first')
})
