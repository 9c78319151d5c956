import * as module from '@platformatic/kafka'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import type { Partition } from '../../src/brokers/broker.ts'
import type { Client } from '../../src/brokers/kafka/platformatic/client.ts'
import { ProtocolRefusal } from '../../src/brokers/kafka/platformatic/error-class.ts'
import { COOPERATIVE, EAGER, encodeAssignment } from '../../src/brokers/kafka/platformatic/group-wire.ts'
import { Membership } from '../../src/brokers/kafka/platformatic/membership.ts'

/** `hang`, the name of an error, or what is answered. */
type Answer = object | string

const SESSION_MS = 400
const p = (partition: number): Partition => ({ partition, topic: 't' })

/** A coordinator of which the test decides what it answers: an object, the name of an error, or nothing. */
class FakeCoordinator {
  answers: Record<string, (count: number) => Answer> = {}
  generation = 0
  owned: Partition[] = []
  protocol = COOPERATIVE
  readonly requests: { readonly args: readonly unknown[]; readonly at: number; readonly name: string }[] = []
  share: Partition[] = [p(0), p(1)]
  readonly #counts = new Map<string, number>()
  readonly #hanging: ((error: Error) => void)[] = []

  readonly client = {
    any: () => Promise.resolve(this.#link),
    at: () => Promise.resolve(this.#link),
    known: () => undefined,
    module,
    refusal: (code: number, text?: string) =>
      new ProtocolRefusal(String(module.protocolErrorsCodesById[code as 0]), text),
    topics: () => Promise.resolve(new Map()),
  } as unknown as Client

  readonly #link = {
    request: (name: string, ...args: unknown[]): Promise<object> => {
      const count = (this.#counts.get(name) ?? 0) + 1
      this.#counts.set(name, count)
      this.requests.push({ args, at: performance.now(), name })
      const answer = this.answers[name]?.(count) ?? this.#usual(name)
      if (answer === 'hang') return new Promise((_, reject) => this.#hanging.push(reject))
      return Promise.resolve(typeof answer === 'string' ? { errorCode: codeOf(answer), memberId: '' } : answer)
    },
  }

  count(name: string): number {
    return this.#counts.get(name) ?? 0
  }

  /** Ends what hangs, as closing the connections does. */
  hangUp(): void {
    for (const reject of this.#hanging.splice(0)) reject(new Error('closed'))
  }

  #usual(name: string): object {
    switch (name) {
      case 'findCoordinator':
        return { coordinators: [{ errorCode: 0, host: 'h', port: 1 }] }
      case 'joinGroup':
        this.generation++
        return { errorCode: 0, generationId: this.generation, leader: 'x', memberId: 'm', protocolName: this.protocol }
      case 'syncGroup':
        return { assignment: encodeAssignment(module, this.share), errorCode: 0 }
      default:
        return { errorCode: 0 }
    }
  }
}

function codeOf(name: string): number {
  return Number(Object.entries(module.protocolErrorsCodesById).find(([, id]) => id === name)?.[0])
}

describe('a membership in a Kafka group', () => {
  let coordinator: FakeCoordinator
  let giving: () => Promise<boolean>
  let log: string[]
  let membership: Membership
  let owned: Partition[]
  let stop: AbortController
  let running: Promise<void>

  beforeEach(() => {
    coordinator = new FakeCoordinator()
    giving = () => Promise.resolve(false)
    log = []
    owned = []
    stop = new AbortController()
    membership = new Membership(
      coordinator.client,
      { group: 'g', sessionTimeoutMs: SESSION_MS, topics: ['t'] },
      {
        assigned: (partitions) => {
          owned = [...partitions]
          log.push(`assigned ${partitions.map((one) => one.partition).join(',')}`)
          return giving()
        },
        lost: () => {
          owned = []
          log.push('lost')
        },
        owned: () => owned,
        problem: () => {},
        revived: () => log.push('revived'),
      },
    )
  })
  afterEach(async () => {
    stop.abort()
    coordinator.hangUp()
    await running
  })
  const run = (): void => {
    running = membership.run(stop.signal, () => {})
  }
  /** Without the times at which a machine that stood still had let the session's time pass, and nothing came of it. */
  const told = (): string[] => log.filter((one) => one !== 'revived')
  const assigned = (times: number): Promise<void> =>
    expect
      .poll(() => log.filter((one) => one.startsWith('assigned')).length, { interval: 2, timeout: 10_000 })
      .toBe(times)
  /** The group begins to meet again, and does not finish. */
  const meetForEver = async (heartbeat: (count: number) => Answer): Promise<void> => {
    coordinator.answers['joinGroup'] = () => 'hang'
    coordinator.answers['heartbeat'] = (count) =>
      coordinator.count('joinGroup') < 2 ? 'REBALANCE_IN_PROGRESS' : heartbeat(count)
    await expect.poll(() => coordinator.count('joinGroup'), { interval: 2, timeout: 10_000 }).toBe(2)
  }

  test('a meeting that outlasts the session costs nothing while the group knows us', async () => {
    run()
    await assigned(1)
    // The first of another generation, which is one we are in.
    await meetForEver((count) => (count % 2 === 0 ? 'ILLEGAL_GENERATION' : 'REBALANCE_IN_PROGRESS'))
    const until = performance.now() + 2 * SESSION_MS
    const beats = coordinator.count('heartbeat')
    await expect.poll(() => performance.now() > until, { interval: 5, timeout: 10_000 }).toBe(true)
    expect(coordinator.count('heartbeat')).toBeGreaterThan(beats)
    expect(told()).toEqual(['assigned 0,1'])
  })

  test('a meeting from which nothing is heard ends what is ours with the session', async () => {
    run()
    await assigned(1)
    await meetForEver(() => 'hang')
    await expect.poll(() => membership.expired, { interval: 5, timeout: 10_000 }).toBe(true)
  })

  test('and all is lost when heartbeats fail, long before the meeting is given up', async () => {
    run()
    await assigned(1)
    await meetForEver(() => 'NETWORK_EXCEPTION')
    await expect.poll(() => log.at(-1), { interval: 5, timeout: 10_000 }).toBe('lost')
    expect(membership.expired).toBe(true)
    await expect(membership.commit([{ ...p(0), offset: 1n }])).rejects.toThrow('REBALANCE_IN_PROGRESS')
    expect(coordinator.count('joinGroup')).toBe(2)
  })

  test('who learns that the group knows him no more hands nothing over, though he is still giving something up', async () => {
    const given = Promise.withResolvers<boolean>()
    giving = () => given.promise
    coordinator.answers['heartbeat'] = (count) => (count === 1 ? 'REBALANCE_IN_PROGRESS' : 'UNKNOWN_MEMBER_ID')
    run()
    await assigned(1)
    expect(membership.expired).toBe(false)
    await expect.poll(() => coordinator.count('heartbeat'), { interval: 2, timeout: 10_000 }).toBe(2)
    // By the answer, not by the session's time, which has hardly begun.
    await new Promise((resolve) => setImmediate(resolve))
    expect(membership.expired).toBe(true)
    giving = () => Promise.resolve(false)
    coordinator.answers['heartbeat'] = () => ({ errorCode: 0 })
    coordinator.answers['joinGroup'] = (count) => (count === 2 ? 'UNKNOWN_MEMBER_ID' : (undefined as never))
    given.resolve(true)
    await assigned(2)
    expect(told()).toEqual(['assigned 0,1', 'lost', 'assigned 0,1'])
    const joins = coordinator.requests.filter((one) => one.name === 'joinGroup')
    expect(joins.map((one) => one.args[3])).toEqual(['', 'm', ''])
  })

  test('out of the group while giving something up is out of the group', async () => {
    const given = Promise.withResolvers<boolean>()
    giving = () => given.promise
    coordinator.answers['heartbeat'] = (count) => (count === 1 ? 'ILLEGAL_GENERATION' : { errorCode: 0 })
    run()
    await expect.poll(() => coordinator.count('heartbeat') > 0 && membership.expired, { interval: 2 }).toBe(true)
    giving = () => Promise.resolve(false)
    given.resolve(true)
    await assigned(2)
    expect(told()).toEqual(['assigned 0,1', 'lost', 'assigned 0,1'])
  })

  test('where everything is given up to meet, a generation that was missed ends what was ours', async () => {
    coordinator.protocol = EAGER
    run()
    await assigned(1)
    coordinator.answers['heartbeat'] = (count) => (count === 1 ? 'REBALANCE_IN_PROGRESS' : { errorCode: 0 })
    // Another meeting begins before ours was over.
    const syncs = coordinator.count('syncGroup')
    coordinator.answers['syncGroup'] = (count) => (count === syncs + 1 ? 'REBALANCE_IN_PROGRESS' : (undefined as never))
    await assigned(2)
    expect(told()).toEqual(['assigned 0,1', 'lost', 'assigned 0,1'])
  })

  test('in the cooperative protocol it goes on: nobody is given what we claim', async () => {
    run()
    await assigned(1)
    coordinator.answers['heartbeat'] = (count) => (count === 1 ? 'REBALANCE_IN_PROGRESS' : { errorCode: 0 })
    const syncs = coordinator.count('syncGroup')
    coordinator.answers['syncGroup'] = (count) => (count === syncs + 1 ? 'REBALANCE_IN_PROGRESS' : (undefined as never))
    await assigned(2)
    expect(told()).toEqual(['assigned 0,1', 'assigned 0,1'])
  })

  test('an assignment that lay there for longer than the session counts from when it was asked for', async () => {
    const late = Promise.withResolvers<object>()
    const beat = Promise.withResolvers<object>()
    coordinator.answers['syncGroup'] = () => late.promise
    coordinator.answers['heartbeat'] = () => beat.promise
    run()
    await expect.poll(() => coordinator.count('syncGroup'), { interval: 2, timeout: 10_000 }).toBe(1)
    const until = performance.now() + 2 * SESSION_MS
    await expect.poll(() => performance.now() > until, { interval: 5, timeout: 10_000 }).toBe(true)
    late.resolve({ assignment: encodeAssignment(module, [p(0)]), errorCode: 0 })
    await assigned(1)
    expect(membership.expired).toBe(true)
    beat.resolve({ errorCode: 0 })
    await expect.poll(() => log.at(-1), { interval: 2, timeout: 10_000 }).toBe('revived')
  })

  test('a commit of which an offset was not answered is not taken for one', async () => {
    run()
    await assigned(1)
    const answered = (...indexes: number[]): object => ({
      topics: [{ name: 't', partitions: indexes.map((partitionIndex) => ({ errorCode: 0, partitionIndex })) }],
    })
    coordinator.answers['offsetCommit'] = (count) => (count === 1 ? answered(0) : answered(0, 1))
    const offsets = [
      { ...p(0), offset: 1n },
      { ...p(1), offset: 1n },
    ]
    await expect(membership.commit(offsets)).rejects.toThrow('not every offset')
    await membership.commit(offsets)
  })
})
