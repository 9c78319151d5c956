import { describe, expect, test } from 'vitest'
import { isMillraceError } from '../../src/core/errors.ts'
import { PgoutputDecoder } from '../../src/outbox-relay/capture/replication/pgoutput.ts'
import {
  begin,
  commit,
  insert,
  int,
  logicalMessage,
  RECORD_COLUMNS,
  recordingSink,
  relation,
  row,
} from '../support/wal-frames.ts'

/** Decodes messages that lie in the middle of a larger buffer, each after the other. */
function decode(...messages: readonly Buffer[]): unknown[][] {
  const { calls, sink } = recordingSink()
  const decoder = new PgoutputDecoder('outbox', sink)
  for (const message of messages) {
    const around = Buffer.concat([Buffer.alloc(13, 0x49), message, Buffer.alloc(9, 0xff)])
    decoder.decode(around, 13, 13 + message.length)
  }
  return calls
}

function codeOf(...messages: readonly Buffer[]): unknown {
  try {
    decode(...messages)
  } catch (error) {
    return isMillraceError(error) ? error.code : error
  }
  return undefined
}

const MESSAGE = {
  id: '0199a3f4-0c01-7abc-8def-0123456789ab',
  topic: 'orders',
  key: 'kéy',
  type: 'order.placed',
  payload: Buffer.from([0, 1, 2, 255]),
  headers: { a: 'b' },
  timeMs: 0x0199a3f40c01,
  seq: '42',
}

describe('the pgoutput decoder', () => {
  test('hands over a transaction: begin, relation, record, message, commit', () => {
    const micros = 86_400_000_123n
    const content = Buffer.from('marker')
    const calls = decode(
      begin(100n, micros, 4_000_000_000),
      relation(),
      insert(row()),
      logicalMessage(true, 90n, 'millrace', content),
      commit(100n, 148n),
    )
    expect(calls).toEqual([
      ['begin', 100n, 4_000_000_000, Date.UTC(2000, 0, 2)],
      ['relation', { columns: RECORD_COLUMNS.map(([name]) => name), id: 16_400, name: 'record', schema: 'outbox' }],
      ['message', MESSAGE, 5_000_000_000n, 9, 4 + 4 + 10],
      ['logical', { content, lsn: 90n, prefix: 'millrace', transactional: true }],
      ['commit', 148n, 100n],
    ])
  })

  test('finds the columns by name, whatever their order and whatever else is there', () => {
    const columns = [...RECORD_COLUMNS, ['extra', 99_999] as const]
    const order = [10, 9, 3, 8, 7, 0, 6, 5, 2, 4, 1]
    const values = [...row(), Buffer.from('what an older relay does not know')]
    const calls = decode(
      relation(order.map((i) => columns[i] as (typeof columns)[number])),
      begin(1n),
      insert(order.map((i) => values[i] as Buffer)),
    )
    expect(calls[2]?.slice(0, 4)).toEqual(['message', MESSAGE, 5_000_000_000n, 9])
  })

  test('reads fields that come as text as it reads binary', () => {
    const text = row({
      tx: '5000000000',
      seq: '42',
      shard: '9',
      id: '0199a3f4-0c01-7abc-8def-0123456789ab',
      topic: 'orders',
      key: 'kéy',
      type: 'order.placed',
      payload: '\\x000102ff',
      headers: '{"a": "b"}',
      bucket: '3',
    })
    expect(decode(relation(), begin(1n), insert(text))[2]).toEqual(decode(relation(), begin(1n), insert(row()))[2])
  })

  test('a key may be null, headers empty, a payload empty, and an id of any version', () => {
    const over = { headers: Buffer.from('\u0001{}'), id: Buffer.alloc(16, 0x4f), key: null, payload: Buffer.alloc(0) }
    const message = decode(relation(), begin(1n), insert(row(over)))[2]?.[1]
    expect(message).toMatchObject({ headers: {}, key: null, payload: Buffer.alloc(0), timeMs: 0 })
  })

  test('numbers beyond 2^53 are exact', () => {
    const over = { seq: int(2n ** 63n - 1n, 8), tx: int(2n ** 64n - 1n, 8) }
    const call = decode(relation(), begin(1n), insert(row(over)))[2]
    expect(call?.[1]).toMatchObject({ seq: '9223372036854775807' })
    expect(call?.[2]).toBe(2n ** 64n - 1n)
    const near = decode(relation(), begin(1n), insert(row({ seq: int(2n ** 53n - 1n, 8) })))[2]
    expect(near?.[1]).toMatchObject({ seq: '9007199254740991' })
    const beyond = decode(relation(), begin(1n), insert(row({ seq: int(2n ** 53n + 1n, 8) })))[2]
    expect(beyond?.[1]).toMatchObject({ seq: '9007199254740993' })
    const txs = [5n, 2n ** 32n + 5n, 5n, 6n]
    const rows = txs.map((tx) => insert(row({ tx: int(tx, 8) })))
    expect(
      decode(relation(), begin(1n), ...rows)
        .slice(2)
        .map((call) => call[2]),
    ).toEqual(txs)
  })

  test('a repeated topic or type is told from one that differs, at any length', () => {
    const names = ['orders', 'orderz', 'order', 'o'.repeat(200), `${'o'.repeat(199)}p`, 'orders']
    const inserts = names.map((name) => insert(row({ topic: Buffer.from(name), type: Buffer.from(`${name}!`) })))
    const messages = decode(relation(), begin(1n), ...inserts).slice(2)
    expect(messages.map((call) => (call[1] as { topic: string }).topic)).toEqual(names)
    expect(messages.map((call) => (call[1] as { type: string }).type)).toEqual(names.map((name) => `${name}!`))
  })

  test('the table made anew, with another oid and shape, is read by its own description', () => {
    const fewer = RECORD_COLUMNS.filter(([name]) => name !== 'bucket')
    const calls = decode(
      relation(),
      relation(fewer, { id: 20_000 }),
      begin(1n),
      insert(row().toSpliced(2, 1), 20_000),
      insert(row()),
    )
    expect(calls.slice(3).map((call) => call[1])).toEqual([MESSAGE, MESSAGE])
  })

  test('a message that is not transactional comes without a transaction', () => {
    const calls = decode(logicalMessage(false, 5n, '', Buffer.alloc(0)))
    expect(calls).toEqual([['logical', { content: Buffer.alloc(0), lsn: 5n, prefix: '', transactional: false }]])
  })

  test('what an insert-only publication never sends is passed over', () => {
    const passed = ['O\0\0\0\0\0\0\0\0origin\0', 'Y\0\0@\0public\0t\0', 'T…', 'U…', 'D…'].map((text) =>
      Buffer.from(text),
    )
    expect(decode(...passed)).toEqual([])
  })

  test('a partition is described before its table, and is no error until a row comes under its name', () => {
    const partition = relation(RECORD_COLUMNS, { id: 1, name: 'record_3' })
    expect(codeOf(relation(), partition, begin(1n), insert(row()))).toBeUndefined()
    expect(codeOf(relation(), partition, begin(1n), insert(row(), 1))).toBe('PUBLICATION_INVALID')
    const other = relation([['id', 20]], { id: 2, name: 'orders', schema: 'public' })
    expect(codeOf(other, begin(1n), insert([int(1, 8)], 2))).toBe('PUBLICATION_INVALID')
  })

  test.each(RECORD_COLUMNS.filter(([name]) => name !== 'bucket'))(
    'a table without %s, or with another type in it, is refused with the fix',
    (missing, oid) => {
      expect(codeOf(relation(RECORD_COLUMNS.filter(([name]) => name !== missing)))).toBe('PUBLICATION_INVALID')
      const altered = RECORD_COLUMNS.map(([name, type]) => [name, name === missing ? oid + 1 : type] as const)
      expect(codeOf(relation(altered))).toBe('PUBLICATION_INVALID')
    },
  )

  test.each<[string, Buffer[]]>([
    ['an empty message', [Buffer.alloc(0)]],
    ['an unknown kind', [Buffer.from('?')]],
    ['a streamed block', [Buffer.from('S\0\0\0\u0001\u0001')]],
    ['a row outside a transaction', [relation(), insert(row())]],
    ['a row of an unknown table', [begin(1n), insert(row())]],
    ['a begin in a transaction', [begin(1n), begin(2n)]],
    ['a commit outside a transaction', [commit(1n, 2n)]],
    ['the commit of another transaction', [begin(1n), commit(2n, 3n)]],
    ['a commit that ends before it begins', [begin(9n), commit(9n, 8n)]],
    ['a row of fewer fields', [relation(), begin(1n), insert(row().slice(1))]],
    ['a null where none may be', [relation(), begin(1n), insert(row({ payload: null }))]],
    ['a null topic', [relation(), begin(1n), insert(row({ topic: null }))]],
    ['a value left out', [relation(), begin(1n), insert(row({ key: 'unchanged' }))]],
    ['a short id', [relation(), begin(1n), insert(row({ id: Buffer.alloc(15) }))]],
    ['a long seq', [relation(), begin(1n), insert(row({ seq: Buffer.alloc(9) }))]],
    ['headers that are not JSON', [relation(), begin(1n), insert(row({ headers: Buffer.from('\u0001{"a') }))]],
    ['headers of another version', [relation(), begin(1n), insert(row({ headers: Buffer.from('\u0002{}') }))]],
    ['text that is no uuid', [relation(), begin(1n), insert(row({ id: 'zzz' }))]],
    ['text that is no bytea', [relation(), begin(1n), insert(row({ payload: 'abc' }))]],
    ['text out of range', [relation(), begin(1n), insert(row({ shard: '40000' }))]],
    ['a transactional message on its own', [logicalMessage(true, 1n, 'p', Buffer.alloc(1))]],
    ['a message of unknown flags', [Buffer.concat([Buffer.from('M\u0002'), Buffer.alloc(20)])]],
    ['bytes behind a message', [Buffer.concat([logicalMessage(false, 1n, 'p', Buffer.alloc(1)), Buffer.alloc(1)])]],
    ['bytes behind a row', [relation(), begin(1n), Buffer.concat([insert(row()), Buffer.alloc(1)])]],
    ['bytes behind a relation', [Buffer.concat([relation(), Buffer.alloc(1)])]],
    ['a relation of too many columns', [Buffer.from('R\0\0\0\u0001outbox\0record\0d\uffff\uffff')]],
  ])('%s is malformed', (_, messages) => {
    expect(codeOf(...messages)).toBe('WAL_MALFORMED')
  })

  test('every message cut short, at every byte, is malformed and reads nothing behind its end', () => {
    const before = [relation(), begin(100n)]
    const whole = [insert(row()), commit(100n, 148n), logicalMessage(true, 90n, 'millrace', Buffer.from('content'))]
    for (const message of whole)
      for (let length = 0; length < message.length; length++)
        expect([length, codeOf(...before, message.subarray(0, length))]).toEqual([length, 'WAL_MALFORMED'])
    for (const message of [relation(), begin(100n)])
      for (let length = 0; length < message.length; length++)
        expect([length, codeOf(message.subarray(0, length))]).toEqual([length, 'WAL_MALFORMED'])
  })

  test('the error says nothing of a payload or a header', () => {
    const secret = insert(row({ headers: Buffer.from('\u0001{"token": s3cret}'), payload: Buffer.from('s3cret') }))
    let error: unknown
    try {
      decode(relation(), begin(1n), secret)
    } catch (thrown) {
      error = thrown
    }
    expect(`${String(error)} ${JSON.stringify(error)} ${String((error as Error).cause)}`).not.toContain('s3cret')
  })
})
