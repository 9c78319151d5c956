import { describe, expect, test } from 'vitest'
import { isMillraceError } from '../../src/core/errors.ts'
import { queryMessage, statusMessage } from '../../src/outbox-relay/capture/replication/frontend-messages.ts'
import {
  noticeIsFatal,
  readReport,
  refused,
  slotTrouble,
  streamBroken,
} from '../../src/outbox-relay/capture/replication/server-report.ts'

const report = (fields: Readonly<Record<string, string>>): Buffer =>
  Buffer.from(
    `${Object.entries(fields)
      .map(([kind, text]) => `${kind}${text}\0`)
      .join('')}\0`,
  )

const said = (sqlstate: string): ReturnType<typeof readReport> => {
  const bytes = report({ S: 'FEHLER', V: 'ERROR', C: sqlstate, M: 'etwas', D: 'genauer' })
  return readReport(bytes, 0, bytes.length)
}

describe('what a stream says', () => {
  test('a status counts microseconds from the year 2000, and says flushed and applied of what was acknowledged', () => {
    const status = statusMessage(0x1_0000_0002n, 0x1_0000_0001n, Date.UTC(2000, 0, 1, 0, 0, 1), true)
    const hex = '64' + '00000026' + '72' + '0000000100000002' + '0000000100000001'.repeat(2) + '00000000000f4240' + '01'
    expect(status.toString('hex')).toBe(hex)
    expect(statusMessage(1n, 0n, Date.UTC(2000, 0, 1), false).at(-1)).toBe(0)
  })

  test('a query is counted in bytes', () => {
    expect(queryMessage('é').toString('hex')).toBe('51' + '00000007' + 'c3a9' + '00')
  })
})

describe('what a server says', () => {
  test.each([
    ['42704', 'missing'],
    ['55006', 'in-use'],
    ['55000', 'lost'],
    ['42501', 'forbidden'],
    ['28000', 'forbidden'],
    ['53300', 'full'],
    ['53400', 'full'],
    ['XX000', undefined],
  ])('%s while a stream is opened is a slot that is %s, in any language', (sqlstate, trouble) => {
    const error = refused(said(sqlstate), 's')
    expect(error).toMatchObject({ code: 'REPLICATION_FAILED', details: { slot: 's', sqlstate } })
    expect(slotTrouble(error)).toBe(trouble)
    expect(error.message).toContain('etwas (genauer)')
  })

  test('a shutdown is a lost connection, whenever it comes', () => {
    for (const sqlstate of ['57P01', '57P02', '57P03', '08006'])
      for (const tell of [refused, streamBroken])
        expect(tell(said(sqlstate), 's')).toMatchObject({ code: 'CONNECTION_LOST', details: { sqlstate } })
  })

  test('an unknown object in a running stream is the publication; a notice is never passed over', () => {
    expect(streamBroken(said('42704'), 's').code).toBe('PUBLICATION_MISSING')
    expect(noticeIsFatal(said('55000'), 's').code).toBe('PUBLICATION_MISSING')
    expect(noticeIsFatal(said('01000'), 's').code).toBe('REPLICATION_FAILED')
    expect(slotTrouble(noticeIsFatal(said('01000'), 's'))).toBeUndefined()
  })

  test.each(['', '\0', 'M', 'Mabc', 'Mabc\0', 'Cxx\0Mabc'])(
    'a report that is cut off (%j) is read as far as it goes',
    (text) => {
      const bytes = Buffer.concat([Buffer.from(text), Buffer.from('beyond')])
      const read = readReport(bytes, 0, text.length)
      expect(JSON.stringify(read)).not.toContain('bey')
      expect(isMillraceError(refused(read, 's'), 'REPLICATION_FAILED')).toBe(true)
    },
  )
})
