import { describe, expect, test } from 'vitest'
import { isMillraceError } from '../../src/core/errors.ts'
import { nearest, OptionCheck } from '../../src/core/options.ts'

const KNOWN = ['broker', 'pageSize', 'pollIntervalMs']

function problemsOf(options: object | undefined, check: (options: OptionCheck) => void = () => undefined): string {
  const checker = new OptionCheck('createThing', options, KNOWN)
  check(checker)
  try {
    checker.done()
    return ''
  } catch (error) {
    if (!isMillraceError(error, 'CONFIG_INVALID')) throw error
    return error.message
  }
}

describe('OptionCheck', () => {
  test('good options pass', () => {
    expect(problemsOf({ broker: 1, pageSize: 5 }, (check) => check.integer('pageSize', 1, 10))).toBe('')
  })

  test('all problems come at once, each with its place, what was given and what would be right', () => {
    const message = problemsOf({ pagesize: 5, pageSize: 1.5, pollIntervalMs: 'soon' }, (check) => {
      check.required('broker', 'a broker')
      check.integer('pageSize', 1, 10)
      check.satisfies('pollIntervalMs', (value) => typeof value === 'number', 'a number')
    })
    expect(message).toContain('createThing: 4 problem(s)')
    expect(message).toContain('pagesize: got an unknown option; expected one that is known; did you mean `pageSize`?')
    expect(message).toContain('broker: got nothing; expected a broker')
    expect(message).toContain('pageSize: got 1.5; expected an integer from 1 to 10')
    expect(message).toContain("pollIntervalMs: got 'soon'; expected a number")
  })

  test('an option that is like no other lists those there are', () => {
    expect(problemsOf({ zzz: 1 })).toContain('one of broker, pageSize, pollIntervalMs')
  })

  test.each([undefined, null, 7 as never])('options that are %s are one clear problem', (options) => {
    expect(problemsOf(options as never)).toContain('expected an options object')
  })

  test.each([0, 11, 1.5, Number.NaN, '5', null])('%s is not an integer from 1 to 10', (pageSize) => {
    expect(problemsOf({ pageSize }, (check) => check.integer('pageSize', 1, 10))).toContain('pageSize: got')
  })

  test('a long text is not repeated: it may be a secret or a payload', () => {
    const message = problemsOf({ broker: 'x'.repeat(61) }, (check) =>
      check.satisfies('broker', () => false, 'a broker'),
    )
    expect(message).toContain('a string of 61 characters')
    expect(message).not.toContain('xxx')
  })
})

describe('nearest', () => {
  test.each([
    ['pagesize', 'pageSize'],
    ['brokr', 'broker'],
    ['polIntervallMs', 'pollIntervalMs'],
    ['x', undefined],
    ['completelyDifferent', undefined],
  ])('%s means %s', (word, meant) => {
    expect(nearest(word, KNOWN)).toBe(meant)
  })
})
