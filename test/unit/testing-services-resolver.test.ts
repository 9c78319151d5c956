import { describe, expect, test } from 'vitest'
import { explicitWay } from '../../src/testing/services/explicit.ts'
import { isNewEnough } from '../../src/testing/services/nats-binary.ts'
import {
  requireAll,
  resolveService,
  type Provided,
  type Way,
  type WayName,
} from '../../src/testing/services/resolver.ts'

const ORDER: readonly WayName[] = ['url', 'docker', 'local']

function fakeWays(leading: readonly WayName[], asked: WayName[]): Way[] {
  return ORDER.map((name) => ({
    name,
    provide: async (): Promise<Provided | undefined> => {
      asked.push(name)
      if (leading.includes(name)) return { address: `${name}:1`, detail: `by ${name}`, stop: async () => {} }
      if (name === 'url') return undefined
      throw new Error(`no ${name} here`)
    },
  }))
}

describe('a service is found by the first way that leads to it', () => {
  test.each([
    { leading: ['url', 'docker', 'local'], asked: ['url'], address: 'url:1' },
    { leading: ['docker', 'local'], asked: ['url', 'docker'], address: 'docker:1' },
    { leading: ['local'], asked: ['url', 'docker', 'local'], address: 'local:1' },
  ] as const)('of $leading: $address', async ({ leading, asked, address }) => {
    const seen: WayName[] = []
    const resolution = await resolveService('kafka', fakeWays(leading, seen))
    expect(seen).toEqual(asked)
    expect(resolution.provided?.address).toBe(address)
    expect(resolution.line).toMatch(new RegExp(`^kafka +${leading[0]} +by ${leading[0]}, ready in \\d+\\.\\d s$`))
  })

  test('of none: the line says why each did not, and what to do', async () => {
    const resolution = await resolveService('nats', fakeWays([], []))
    expect(resolution.provided).toBeUndefined()
    expect(resolution.line).toMatch(
      /^nats +skipped +docker: no docker here; local: no local here\. To get it: install Go/,
    )
  })

  test('an explicit address that is dead is an error, and no other way is tried', async () => {
    const asked: WayName[] = []
    const env = { MILLRACE_TEST_KAFKA: '127.0.0.1:1' }
    const ways = [explicitWay('kafka', env), ...fakeWays(['docker'], asked)]
    await expect(resolveService('kafka', ways)).rejects.toMatchObject({
      code: 'SERVICE_UNAVAILABLE',
      message: expect.stringContaining('nobody answers at 127.0.0.1:1, which MILLRACE_TEST_KAFKA names'),
    })
    expect(asked).toEqual([])
  })

  test.each([
    ['kafka', 'MILLRACE_TEST_KAFKA', 'somewhere'],
    ['postgres18', 'MILLRACE_TEST_POSTGRES', '127.0.0.1:5432'],
  ] as const)('an explicit address of %s that is none is refused', async (service, variable, value) => {
    const way = explicitWay(service, { [variable]: value })
    await expect(way.provide()).rejects.toMatchObject({
      code: 'CONFIG_INVALID',
      message: expect.stringContaining(`${variable} has the form`),
    })
  })
})

test('REQUIRE_REAL names every missing service and how to get it', async () => {
  const kafka = await resolveService('kafka', fakeWays([], []))
  const nats = await resolveService('nats', fakeWays(['local'], []))
  const postgres = await resolveService('postgres15', fakeWays([], []))
  expect(() => requireAll([nats])).not.toThrow()
  let message = ''
  try {
    requireAll([kafka, nats, postgres])
  } catch (error) {
    message = (error as Error).message
  }
  expect(message).toContain('2 service(s) missing')
  expect(message).toMatch(/kafka .*Maven.*MILLRACE_TEST_KAFKA=host:port/)
  expect(message).toMatch(/postgres15 .*npm install.*MILLRACE_TEST_POSTGRES15=postgres:/)
  expect(message).not.toMatch(/^nats/m)
})

test.each([
  ['nats-server: v2.9.11', false],
  ['nats-server: v2.11.9', false],
  ['nats-server: v2.12.0', true],
  ['2.15.2', true],
  ['nats-server: v3.0.1', true],
  ['no version', false],
])('nats-server is new enough for atomic batches from 2.12 on: %s', (said, expected) => {
  expect(isNewEnough(said)).toBe(expected)
})
