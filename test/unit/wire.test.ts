import { expect, test } from 'vitest'
import { HEADER, readHeaders, writeHeaders } from '../../src/core/wire.ts'

const written = (timeMs: number): Map<string, string> => {
  const headers = new Map<string, string>()
  const message = { id: 'i', topic: 't', key: null, type: 'x', payload: Buffer.alloc(0), headers: {}, timeMs, seq: '1' }
  writeHeaders(message, (name, value) => headers.set(name, value))
  return headers
}

test('the time on the wire is ISO 8601 in UTC, as Date has it, for times in any order', () => {
  for (const timeMs of [
    1, 999, 1000, 1_795_449_084_165, 1_795_449_084_007, 1_795_449_083_999, 1_795_449_085_000, 59_999,
  ]) {
    expect(written(timeMs).get(HEADER.time)).toBe(new Date(timeMs).toISOString())
    expect(readHeaders(written(timeMs)).timeMs).toBe(timeMs)
  }
  expect(written(0).has(HEADER.time)).toBe(false)
})

test("headers of our own are told from the user's, and a hostile name reaches no prototype", () => {
  const entries: [string, string][] = [
    [HEADER.id, 'i'],
    [HEADER.type, 'x'],
    ['millrace-unknown', 'ours, of a later version'],
    ['traceparent', '00-1-2-01'],
    ['__proto__', 'polluted'],
  ]
  const read = readHeaders(entries)
  expect({ ...read.headers }).toEqual(Object.fromEntries(entries.slice(3)))
  expect(Object.getPrototypeOf(read.headers)).toBe(null)
  expect(({} as Record<string, unknown>)['polluted']).toBeUndefined()
  expect(read).toMatchObject({ id: 'i', type: 'x', key: undefined, timeMs: 0 })
})
