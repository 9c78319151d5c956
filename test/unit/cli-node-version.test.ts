import { expect, test } from 'vitest'
import { nodeTooOld } from '../../src/cli/node-version.ts'

test('a Node below 22.22 is told what it is and what to install, and a newer one nothing', () => {
  for (const version of ['18.20.0', '20.20.2', '22.21.9']) expect(nodeTooOld(version)).toMatch(`this is ${version}.`)
  for (const version of ['22.22.0', '22.23.3', '24.0.0', '26.10.0']) expect(nodeTooOld(version)).toBeUndefined()
})
