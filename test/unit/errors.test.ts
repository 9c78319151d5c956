import { describe, expect, test } from 'vitest'
import { ERROR_CODES, isMillraceError, MillraceError, type ErrorCode } from '../../src/core/errors.ts'
import { readSources } from './architecture-source.ts'

const codes = Object.keys(ERROR_CODES) as ErrorCode[]
const sources = readSources('src')

describe('the table of errors', () => {
  test('is sorted, so that two people who add a code do not meet', () => {
    expect(codes).toEqual(codes.toSorted())
    expect(codes.filter((code) => !/^[A-Z]+(_[A-Z]+)+$/.test(code))).toEqual([])
  })

  test('holds no code that nothing raises', () => {
    const code = sources.filter(({ path }) => path !== 'src/core/errors.ts').map((source) => source.code)
    expect(codes.filter((name) => !code.some((text) => text.includes(`'${name}'`)))).toEqual([])
  })

  test.each(codes)('%s: an error has code, name, retryable, details and cause', (code) => {
    const cause = new Error('why')
    const error = new MillraceError(code, 'what, and how to put it right', { cause, details: { size: 3 } })
    expect(error).toBeInstanceOf(Error)
    expect(error).toMatchObject({
      cause,
      code,
      details: { size: 3 },
      message: 'what, and how to put it right',
      name: 'MillraceError',
      retryable: ERROR_CODES[code].retryable,
    })
    expect(isMillraceError(error)).toBe(true)
    expect(isMillraceError(error, code)).toBe(true)
    expect(isMillraceError(error, codes.find((other) => other !== code) as ErrorCode)).toBe(false)
  })

  test('an error without options has no cause and empty details', () => {
    const error = new MillraceError('LEASE_LOST', 'text')
    expect('cause' in error).toBe(false)
    expect(error.details).toEqual({})
  })

  test('an error of another copy of the package is recognised', () => {
    const foreign = Object.assign(new Error('text'), { name: 'MillraceError', code: 'LEASE_LOST' })
    expect(isMillraceError(foreign, 'LEASE_LOST')).toBe(true)
    expect(isMillraceError(new Error('text'))).toBe(false)
    expect(isMillraceError({ name: 'MillraceError', code: 'LEASE_LOST' })).toBe(false)
  })
})

describe('messages', () => {
  test('a missing peer names the exact npm command', () => {
    const raising = sources.filter(({ code }) => /new MillraceError\(\s*'PEER_MISSING'/.test(code))
    expect(raising.length).toBeGreaterThan(0)
    expect(raising.filter(({ code }) => !/npm i [@a-z$]/.test(code)).map(({ path }) => path)).toEqual([])
  })
})
