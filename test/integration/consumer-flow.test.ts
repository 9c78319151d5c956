import { expect, test } from 'vitest'
import { describeWith } from '../support/services.ts'
import { effects, numbered, writeEffect } from './consumer-effect.ts'
import { stage } from './consumer-stage.ts'

/** A gate that handlers wait at. */
function gate(): { readonly open: () => void; readonly opened: Promise<void> } {
  const { promise, resolve } = Promise.withResolvers<void>()
  return { open: resolve, opened: promise }
}

describeWith('postgres18', 'the bounds of a consumer', () => {
  test('in-flight messages are bounded by count: a partition is paused and resumed, and nothing is lost or repeated', async () => {
    let highest = 0
    const { broker, consumer, database, finished } = await stage({
      handle: async (message, { tx }) => {
        highest = Math.max(highest, consumer.stats().inFlight)
        await writeEffect(message, tx)
      },
      maxInFlight: 40,
    })
    broker.deliver(0, numbered(1000, 10))
    expect(consumer.stats()).toMatchObject({ inFlight: 40, pausedPartitions: 1, received: 40 })
    await finished(1000)
    // The bound, and what is handed over at once: ten.
    expect(highest).toBeLessThanOrEqual(49)
    expect(broker.pauses.length).toBeGreaterThan(5)
    expect(consumer.stats()).toMatchObject({ duplicates: 0, handled: 1000, inFlight: 0, pausedPartitions: 0 })
    expect(await effects(database.pool)).toHaveLength(1000)
  })

  test('in-flight messages are bounded by bytes', async () => {
    let highest = 0
    const { broker, consumer, finished } = await stage({
      handle: () => {
        highest = Math.max(highest, consumer.stats().inFlightBytes)
      },
      maxInFlightBytes: 100_000,
    })
    const payload = JSON.stringify('x'.repeat(998))
    broker.deliver(
      0,
      numbered(500, 500).map(({ key }) => ({ key, payload })),
    )
    expect(consumer.stats()).toMatchObject({ inFlight: 100, inFlightBytes: 100_000, pausedPartitions: 1 })
    await finished(500)
    expect(highest).toBeLessThanOrEqual(110_000)
    expect(consumer.stats()).toMatchObject({ inFlight: 0, inFlightBytes: 0 })
  })

  test('a blocked partition is paused alone; the others go on', async () => {
    const { open, opened } = gate()
    const { broker, consumer, finished } = await stage({
      concurrency: 2,
      groupSize: 1,
      handle: async (message) => {
        if (message.partition === 0) await opened
      },
      maxInFlight: 60,
    })
    broker.assign(1, 2)
    // One key, so that it blocks one worker.
    broker.deliver(0, numbered(500, 1))
    expect([...broker.paused]).toEqual([0])
    broker.deliver(1, numbered(300, 5))
    broker.deliver(2, numbered(300, 5))
    await finished(600)
    expect([...broker.paused]).toEqual([0])
    expect(consumer.stats().inFlight).toBeLessThanOrEqual(60)
    open()
    await finished(1100)
    expect(broker.paused.size).toBe(0)
  })

  test('no more transactions run at a time than asked for', async () => {
    let running = 0
    let highest = 0
    const { open, opened } = gate()
    const { broker, finished } = await stage({
      concurrency: 3,
      groupSize: 2,
      handle: async (_message, { tx }) => {
        highest = Math.max(highest, ++running)
        if (running === 3) open()
        await opened
        await tx.query('select pg_sleep(0.002)')
        running--
      },
    })
    broker.deliver(0, numbered(200, 50))
    await finished(200)
    expect(highest).toBe(3)
  })

  test('commits come lazily: by the interval or by the count, never one a message', async () => {
    const { broker, consumer, finished } = await stage({ commitEvery: 100, commitIntervalMs: 3_600_000 })
    broker.deliver(0, numbered(1000, 10))
    await finished(1000)
    await expect.poll(() => consumer.stats().committed).toBeGreaterThanOrEqual(900)
    expect(broker.commits).toBeLessThanOrEqual(11)
  })

  test('a commit that fails is made up for by the next', async () => {
    const { broker, consumer, errors, finished } = await stage()
    let failures = 0
    broker.onCommit = () => {
      if (++failures <= 2) throw new Error('the coordinator is moving')
    }
    broker.deliver(0, numbered(10, 10))
    await finished(10)
    await expect.poll(() => consumer.stats().committed).toBe(10)
    expect(errors).toHaveLength(2)
  })
})
