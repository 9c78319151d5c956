/**
 * A pool's end is answered before the server has read its goodbye. A server that is stopped then, or drops the database,
 * tells the connection so: the pool emits an error, and without a listener the worker of the tests dies of it, now and
 * then, beside tests that all passed.
 */
import { globSync, readFileSync } from 'node:fs'
import path from 'node:path'
import { expect, test } from 'vitest'

const TESTS = path.resolve(import.meta.dirname, '..')

test('whoever makes a pool listens to its errors', () => {
  const unheard: string[] = []
  let pools = 0
  for (const file of globSync('{chaos,docs,integration,setup,support}/**/*.ts', { cwd: TESTS })) {
    const source = readFileSync(path.join(TESTS, file), 'utf8')
    for (const { index } of source.matchAll(/new pg\.Pool\(/g)) {
      pools++
      const [, name = ''] = [...source.slice(0, index).matchAll(/([\w.#]+) =\s/g)].at(-1) ?? []
      if (!source.slice(index).includes(`${name}.on('error'`)) unheard.push(`${file}: ${name}`)
    }
  }
  expect(pools).toBeGreaterThan(20)
  expect(unheard).toEqual([])
})
