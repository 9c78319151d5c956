import { describe, expect, test } from 'vitest'
import { RetryAges } from '../../src/brokers/nats/retry-ages.ts'
import { MISSING_GRACE_MS, classifyFault, noStream, notDurable } from '../../src/brokers/nats/error-class.ts'
import type { StreamFacts } from '../../src/brokers/nats/stream-directory.ts'
import type { Unresolved } from '../../src/brokers/broker.ts'
import { sampleMessage } from '../../src/testing/conformance/sample-message.ts'

describe('the class of an answer', () => {
  test.each([
    [{ code: 400, err_code: 10054 }, 'poison failed MESSAGE_REJECTED'],
    [{ code: 400, err_code: 10097 }, 'poison failed MESSAGE_REJECTED'],
    [{ code: 409, err_code: 10158 }, 'retry unknown PUBLISH_REFUSED'],
    [{ code: 429, err_code: 10167 }, 'throttle failed PUBLISH_REFUSED'],
    [{ code: 429, err_code: 10210 }, 'throttle failed PUBLISH_REFUSED'],
    [{ code: 429 }, 'throttle failed PUBLISH_REFUSED'],
    [{ code: 503, err_code: 10039 }, 'fatal failed PUBLISH_FATAL'],
    [{ code: 503, err_code: 10076 }, 'fatal failed PUBLISH_FATAL'],
    [{ code: 400, err_code: 10109 }, 'fatal failed PUBLISH_FATAL'],
    [{ code: 400, err_code: 10169 }, 'fatal failed PUBLISH_FATAL'],
    [{ code: 400, err_code: 10174 }, 'fatal failed PUBLISH_FATAL'],
    [{ code: 400, err_code: 10002 }, 'retry failed PUBLISH_REFUSED'],
    [{ code: 503, err_code: 10023 }, 'retry failed PUBLISH_REFUSED'],
    [{ code: 503, err_code: 10077 }, 'retry failed PUBLISH_REFUSED'],
    [{ code: 503, err_code: 10008 }, 'retry failed PUBLISH_REFUSED'],
    [{ code: 500, err_code: 10118 }, 'retry failed PUBLISH_REFUSED'],
    [{}, 'retry failed PUBLISH_REFUSED'],
  ])('%j is %s', (fault, expected) => {
    const { class: errorClass, error, outcome } = classifyFault(fault, 'orders', 'id-1')
    expect(`${errorClass} ${outcome} ${(error as { code?: string }).code}`).toBe(expected)
    expect(error.message).toContain('id-1')
  })

  test('nobody on the subject is the fault of the message only after the server has said so for the grace period', () => {
    const message = sampleMessage('orders')
    expect(noStream(message, 'orders', MISSING_GRACE_MS - 1)).toMatchObject({ class: 'retry', outcome: 'failed' })
    expect(noStream(message, 'orders', MISSING_GRACE_MS)).toMatchObject({ class: 'poison', outcome: 'failed' })
  })

  test('a stream that cannot keep the promise of fsync is refused for each reason', () => {
    const facts: StreamFacts = {
      allowAtomic: true,
      duplicateWindowMs: 120_000,
      name: 'orders',
      persistAsync: false,
      replicas: 1,
      storage: 'file',
    }
    expect(notDurable(facts)).toBeUndefined()
    for (const wrong of [{ allowAtomic: false }, { persistAsync: true }, { storage: 'memory' as const }]) {
      expect(notDurable({ ...facts, ...wrong })).toMatchObject({ class: 'fatal', error: { code: 'CONFIG_INVALID' } })
    }
  })
})

describe('how long ago a message was first sent', () => {
  const batch = [sampleMessage('a'), sampleMessage('b'), sampleMessage('a')]
  const unresolved = (...outcomes: (Unresolved['outcome'] | undefined)[]): Unresolved[] =>
    outcomes.flatMap((outcome, index) =>
      outcome === undefined ? [] : [{ class: 'retry', error: new Error('x'), index, outcome }],
    )

  test('counts from the first attempt that was unknown; what is known not to be there is never late', () => {
    const ages = new RetryAges()
    ages.settle(batch, unresolved('unknown', 'failed', 'unsent'), 1000)
    ages.settle(batch, unresolved('unknown', 'unknown', 'failed'), 1500)
    expect(ages.late(batch, 1900, () => 500)).toMatchObject([
      { count: 1, ids: [batch[0]?.id], oldestMs: 900, topic: 'a', windowMs: 500 },
    ])
    expect(ages.late(batch, 2001, () => 500)).toMatchObject([{ count: 1, ids: [batch[1]?.id], topic: 'b' }])
    expect(ages.late(batch, 9000, () => 500)).toEqual([])
  })

  test('is forgotten when it is stored', () => {
    const ages = new RetryAges()
    ages.settle(batch, unresolved('unknown', 'unknown', 'unknown'), 1000)
    ages.settle(batch, unresolved(undefined, 'failed'), 1100)
    expect(ages.late(batch, 9000, () => 500)).toMatchObject([{ count: 1, topic: 'b' }])
  })
})
