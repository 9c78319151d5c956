import { onTestFinished, expect, test } from 'vitest'
import { createTestDatabase, describeWith } from '../support/services.ts'
import { EFFECT_TABLE, effects, numbered, writeEffect } from './consumer-effect.ts'
import { stage } from './consumer-stage.ts'

describeWith('postgres18', 'a consumer whose partitions or life end', () => {
  test('revoked: what runs ends and is committed, what only waits is left to the next owner', async () => {
    const entered = Promise.withResolvers<void>()
    const release = Promise.withResolvers<void>()
    const { broker, consumer, database } = await stage({
      commitIntervalMs: 3_600_000,
      concurrency: 1,
      groupSize: 5,
      handle: async (message, { tx }) => {
        await writeEffect(message, tx)
        entered.resolve()
        await release.promise
      },
    })
    const messages = broker.deliver(0, numbered(100, 1))
    await entered.promise
    let revoked = false
    const revoking = broker.revoke(0).then(() => (revoked = true))
    // Handed over too late: nobody's business here.
    broker.deliver(0, numbered(10, 10))
    expect(revoked).toBe(false)
    release.resolve()
    await revoking
    expect(broker.committed.get(0)).toBe(messages[4]?.position)
    expect(consumer.stats()).toMatchObject({
      assignedPartitions: 0,
      committed: 5,
      handled: 5,
      inFlight: 0,
      received: 100,
    })
    await database.pool.query('select pg_sleep(0.1)')
    expect(await effects(database.pool)).toHaveLength(5)
    // The partition comes back, from where it was committed.
    broker.assign(0)
    const copies = messages.slice(5).map(({ id, key, payload }) => ({ id, key, payload: String(payload) }))
    broker.deliver(0, copies)
    await expect.poll(() => consumer.stats().handled).toBe(100)
    expect((await effects(database.pool)).map((effect) => effect.n)).toEqual([...Array(100).keys()])
  })

  test('revoked, and the handler takes too long: its signal aborts, it is rolled back, nothing of it is committed', async () => {
    const aborted = Promise.withResolvers<void>()
    const entered = Promise.withResolvers<void>()
    const { broker, consumer, database } = await stage({
      handle: async (message, { signal, tx }) => {
        await writeEffect(message, tx)
        if (message.key !== 'slow') return
        signal.addEventListener('abort', () => aborted.resolve())
        entered.resolve()
        await aborted.promise
      },
      revokeTimeoutMs: 50,
    })
    broker.assign(1)
    broker.deliver(0, [{ key: 'slow' }])
    await entered.promise
    await broker.revoke(0)
    await aborted.promise
    expect(broker.committed.has(0)).toBe(false)
    // Another partition is none the worse for it.
    broker.deliver(1, numbered(20, 2))
    await expect.poll(() => consumer.stats().handled).toBe(20)
    expect(await effects(database.pool)).toHaveLength(20)
  })

  test('lost: running effects are rolled back and no position is committed any more', async () => {
    const entered = Promise.withResolvers<AbortSignal>()
    const { broker, consumer, database } = await stage({
      handle: async (message, { signal, tx }) => {
        await writeEffect(message, tx)
        entered.resolve(signal)
        await new Promise((resolve) => signal.addEventListener('abort', resolve))
      },
    })
    broker.deliver(0, numbered(30, 3))
    const signal = await entered.promise
    broker.lose(0)
    expect(signal.aborted).toBe(true)
    expect(consumer.stats()).toMatchObject({ assignedPartitions: 0, inFlight: 0 })
    await consumer.stop()
    expect([broker.commits, await effects(database.pool)]).toEqual([0, []])
  })

  test('lost during COMMIT: the effect counts as what it is, and its position is still not committed', async () => {
    const { broker, consumer, database, finished, signals } = await stage()
    // COMMIT takes until we let it end, on the server, where nothing can call it back.
    const holding = await database.pool.connect()
    await holding.query('select pg_advisory_lock(1)')
    await database.pool.query(`create function slow() returns trigger language plpgsql as
      $$ begin perform pg_advisory_xact_lock(1); return null; end $$`)
    await database.pool.query(`create constraint trigger slow after insert on effect deferrable initially deferred
      for each row execute function slow()`)
    const committing = signals.next('consumer.commit')
    broker.deliver(0, [{ key: 'a' }])
    await committing
    await expect
      .poll(async () => {
        const { rowCount } = await database.pool.query(
          `select from pg_stat_activity where datname = current_database() and query = 'commit' and state = 'active'`,
        )
        return rowCount
      })
      .toBe(1)
    broker.lose(0)
    await holding.query('select pg_advisory_unlock(1)')
    holding.release()
    await finished(1)
    expect(consumer.stats()).toMatchObject({ handled: 1, retried: 0 })
    expect(await effects(database.pool)).toHaveLength(1)
    await consumer.stop()
    expect(broker.commits).toBe(0)
  })

  test('a crash between the effect and the commit to the broker: the copies are dropped', async () => {
    const database = await createTestDatabase()
    await database.pool.query(EFFECT_TABLE)
    onTestFinished(() => database.close())
    const first = await stage({}, database)
    first.broker.onCommit = () => Promise.reject(new Error('the broker never hears of it'))
    const messages = first.broker.deliver(0, numbered(200, 5))
    await first.finished(200)
    first.broker.die(new Error('crashed'))
    await expect(first.consumer.stopped).rejects.toThrow('crashed')
    expect(first.broker.committed.size).toBe(0)

    const second = await stage({}, database)
    const copies = messages.map(({ id, key, payload }) => ({ id, key, payload: String(payload), redelivered: true }))
    second.broker.deliver(0, [...copies, ...numbered(10, 5, 40)])
    await second.finished(210)
    expect(second.consumer.stats()).toMatchObject({ duplicates: 200, handled: 10 })
    expect(await effects(database.pool)).toHaveLength(210)
  })

  test('two members with the same messages at the same time: every effect once', async () => {
    const database = await createTestDatabase()
    await database.pool.query(EFFECT_TABLE)
    onTestFinished(() => database.close())
    const [one, two] = [await stage({}, database), await stage({}, database)]
    const drafts = one.broker
      .deliver(0, numbered(500, 20))
      .map(({ id, key, payload }) => ({ id, key, payload: String(payload) }))
    two.broker.deliver(0, drafts.toReversed())
    await Promise.all([one.finished(500), two.finished(500)])
    expect(one.consumer.stats().handled + two.consumer.stats().handled).toBe(500)
    expect(new Set((await effects(database.pool)).map((effect) => effect.id)).size).toBe(500)
    expect(await effects(database.pool)).toHaveLength(500)
  })

  test('stop drains: running groups end, their positions are committed, the group is left, and nothing comes after', async () => {
    const entered = Promise.withResolvers<void>()
    const { broker, consumer, database } = await stage({
      commitIntervalMs: 3_600_000,
      concurrency: 1,
      groupSize: 10,
      handle: async (message, { tx }) => {
        entered.resolve()
        await tx.query('select pg_sleep(0.01)')
        await writeEffect(message, tx)
      },
    })
    const messages = broker.deliver(0, numbered(1000, 10))
    await entered.promise
    await consumer.stop()
    await consumer.stopped
    const done = (await effects(database.pool)).length
    expect(done).toBe(10)
    expect(consumer.stats()).toMatchObject({ committed: 10, handled: 10 })
    expect([broker.left, broker.committed.get(0)]).toEqual([true, messages[9]?.position])
    broker.deliver(0, numbered(5, 5))
    await database.pool.query('select pg_sleep(0.05)')
    expect(await effects(database.pool)).toHaveLength(done)
    expect(database.pool.idleCount).toBe(database.pool.totalCount)
  })

  test('stop does not wait for ever: a handler that ignores its signal is left behind and commits nothing', async () => {
    const entered = Promise.withResolvers<AbortSignal>()
    const release = Promise.withResolvers<void>()
    const { broker, consumer, database, errors } = await stage({
      handle: async (message, { signal, tx }) => {
        await writeEffect(message, tx)
        entered.resolve(signal)
        await release.promise
        await writeEffect(message, tx)
      },
    })
    broker.deliver(0, [{ key: 'a' }])
    const signal = await entered.promise
    await consumer.stop({ timeoutMs: 30 })
    expect([signal.aborted, broker.left, broker.commits]).toEqual([true, true, 0])
    expect(errors).toEqual([expect.objectContaining({ code: 'SHUTDOWN_TIMEOUT' })])
    release.resolve()
    await database.pool.query('select pg_sleep(0.05)')
    expect(await effects(database.pool)).toEqual([])
  })

  test('a subscription that cannot go on rejects `stopped` with its reason', async () => {
    const { broker, consumer, finished } = await stage()
    broker.deliver(0, numbered(10, 2))
    await finished(10)
    broker.die(new Error('not authorised any more'))
    await expect(consumer.stopped).rejects.toThrow('not authorised any more')
    await expect(consumer.start()).rejects.toMatchObject({ code: 'LIFECYCLE_STOPPED' })
    await consumer.stop()
  })

  test('a database without the tables fails the start with the command that makes them', async () => {
    const database = await createTestDatabase({ migrate: false })
    onTestFinished(() => database.close())
    await expect(stage({}, database)).rejects.toMatchObject({ code: 'SCHEMA_MISSING' })
  })
})
