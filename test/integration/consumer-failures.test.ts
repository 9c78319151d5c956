import { expect, test } from 'vitest'
import { describeWith } from '../support/services.ts'
import { byKey, effects, numbered, range, writeEffect } from './consumer-effect.ts'
import { stage } from './consumer-stage.ts'

describeWith('postgres18', 'a handler that fails', () => {
  test('becomes a dead letter after its attempts, while its neighbours and its key go on in order', async () => {
    const seen = new Map<string, number[]>()
    const runs = new Map<string, number>()
    const { broker, consumer, database, errors, finished } = await stage({
      handle: async (message, { attempt, tx }) => {
        await writeEffect(message, tx)
        runs.set(message.id, (runs.get(message.id) ?? 0) + 1)
        if (message.headers['poison'] === undefined) return
        seen.set(message.id, [...(seen.get(message.id) ?? []), attempt])
        throw new Error(`cannot apply ${message.id}`)
      },
    })
    const drafts = numbered(400, 10).map((draft, i) => ({ ...draft, headers: i % 100 === 42 ? { poison: 'yes' } : {} }))
    const messages = broker.deliver(0, drafts)
    await finished(400)
    const poison = messages.filter((message) => message.headers['poison'] !== undefined)
    expect(consumer.stats()).toMatchObject({ deadLettered: 4, duplicates: 0, handled: 396, inFlight: 0, retried: 8 })
    expect(errors).toHaveLength(12)
    // A neighbour runs again once, by itself, and not with every try of the poison.
    for (const { headers, id } of messages)
      if (headers['poison'] === undefined) expect(runs.get(id)).toBeLessThanOrEqual(2)
    for (const { id } of poison) expect(new Set(seen.get(id))).toEqual(new Set([1, 2, 3]))
    for (const [key, numbers] of byKey(await effects(database.pool))) {
      const dead = poison.filter((message) => message.key === key)
      const missing = dead.map((message) => (JSON.parse(String(message.payload)) as { n: number }).n)
      expect(numbers).toEqual(range(40).filter((n) => !missing.includes(n)))
    }
    const { rows } = await database.pool.query<Record<string, unknown>>(
      `select d.message_id, d.attempts, d.consumer, d.error, m.state, d.position from inbox.dead_letter d join inbox.message m using (consumer, id) order by d.position`,
    )
    expect(rows.map((row) => row['message_id'])).toEqual(poison.map((message) => message.id))
    for (const row of rows) expect(row).toMatchObject({ attempts: 3, consumer: 'billing', state: 'dead' })
    expect(rows[0]?.['error']).toContain(`cannot apply ${poison[0]?.id}`)
    // A redelivered dead letter stays dead.
    broker.deliver(0, [{ id: poison[0]?.id as string, headers: { poison: 'yes' } }])
    await finished(401)
    expect(consumer.stats()).toMatchObject({ deadLettered: 4, duplicates: 1 })
  })

  test('holds its lane but no worker: other keys pass it, later messages of its key wait', async () => {
    const order: string[] = []
    const { broker, consumer, finished, signals } = await stage({
      concurrency: 1,
      handle: (message, { attempt }) => {
        if (message.headers['bad'] !== undefined && attempt < 4) throw new Error('not yet')
        order.push(message.headers['name'] as string)
      },
      retry: { attempts: 10, maxDelayMs: 60, minDelayMs: 60 },
    })
    const failed = signals.next('consumer.failed')
    broker.deliver(0, [{ headers: { bad: 'yes', name: 'a1' }, key: 'a' }])
    await failed
    broker.deliver(0, [{ headers: { name: 'a2' }, key: 'a' }])
    for (let i = 1; i <= 20; i++) {
      broker.deliver(0, [{ headers: { name: `b${i}` }, key: 'b' }])
      await finished(i)
      if (order.includes('a1')) break
    }
    await finished(consumer.stats().received)
    expect(order.indexOf('b1')).toBeLessThan(order.indexOf('a1'))
    expect(order.indexOf('a1')).toBeLessThan(order.indexOf('a2'))
  })

  test('positions are committed only up to the first message that is not done', async () => {
    let release: (() => void) | undefined
    const held = new Promise<void>((resolve) => (release = resolve))
    const { broker, consumer, finished } = await stage({
      groupSize: 1,
      handle: async (message) => {
        if (message.key === 'slow') await held
      },
    })
    const messages = broker.deliver(0, [{ key: 'a' }, { key: 'b' }, { key: 'slow' }, ...numbered(50, 5)])
    await finished(52)
    await expect.poll(() => broker.committed.get(0)).toBe(messages[1]?.position)
    expect(consumer.stats().committed).toBe(2)
    release?.()
    await expect.poll(() => broker.committed.get(0)).toBe(messages.at(-1)?.position)
    expect(consumer.stats().committed).toBe(53)
    expect(broker.commits).toBeLessThan(10)
  })

  test('serialisation failures and deadlocks are tried again and burn no attempt', async () => {
    const attempts: number[] = []
    const left = new Map([
      ['40001', 6],
      ['40P01', 6],
    ])
    const { broker, consumer, database, errors, finished } = await stage({
      handle: async (message, { attempt, tx }) => {
        attempts.push(attempt)
        await writeEffect(message, tx)
        const state = message.headers['state'] as string
        const rest = left.get(state) ?? 0
        left.set(state, rest - 1)
        if (rest > 0) await tx.query(`do $$ begin raise exception 'again' using errcode = '${state}'; end $$`)
      },
      retry: { attempts: 1 },
    })
    broker.deliver(0, [
      { headers: { state: '40001' }, key: 'a' },
      { headers: { state: '40P01' }, key: 'b' },
    ])
    await finished(2)
    expect(new Set(attempts)).toEqual(new Set([1]))
    expect(errors).toEqual([])
    expect(consumer.stats()).toMatchObject({ deadLettered: 0, handled: 2 })
    expect(await effects(database.pool)).toHaveLength(2)
  })

  test('real conflicts between groups end with every effect once', async () => {
    const { broker, consumer, database, finished } = await stage({
      groupSize: 8,
      handle: async (message, { tx }) => {
        // Groups lock these rows in any order, so they deadlock.
        const { n } = message.json<{ n: number }>()
        await tx.query('update counter set total = total + 1 where id = $1', [(n * 7) % 4])
        await writeEffect(message, tx)
      },
    })
    await database.pool.query('create table counter (id int primary key, total int not null default 0)')
    await database.pool.query('insert into counter (id) select generate_series(0, 3)')
    await database.pool.query(
      `do $$ begin execute format('alter database %I set deadlock_timeout = ''20ms''', current_database()); end $$`,
    )
    await database.pool.query(
      'select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()',
    )
    broker.deliver(0, numbered(400, 40))
    await finished(400)
    expect(consumer.stats()).toMatchObject({ deadLettered: 0, handled: 400 })
    const { rows } = await database.pool.query<{ total: number }>('select sum(total)::int as total from counter')
    expect(rows[0]?.total).toBe(400)
    expect(await effects(database.pool)).toHaveLength(400)
  })

  test('what can only fail at COMMIT is found too, and only the culprit dies', async () => {
    const { broker, consumer, database, finished } = await stage()
    await database.pool.query('alter table effect add constraint once unique (n) deferrable initially deferred')
    broker.deliver(0, [
      ...numbered(20, 20).map(({ key }, i) => ({ key, payload: `{"n":${i}}` })),
      { key: 'x', payload: '{"n":3}' },
    ])
    await finished(21)
    expect(consumer.stats()).toMatchObject({ deadLettered: 1, handled: 20 })
  })

  test('an error thrown by onError or a thrown thing that is no error breaks nothing', async () => {
    const { broker, consumer, finished } = await stage({
      handle: (message) => {
        // oxlint-disable-next-line typescript/only-throw-error -- that is the point
        if (message.key === 'odd') throw Object.create(null)
      },
      onError: () => {
        throw new Error('from onError')
      },
    })
    broker.deliver(0, [{ key: 'odd' }, { key: 'a' }])
    await finished(2)
    expect(consumer.stats()).toMatchObject({ deadLettered: 1, handled: 1 })
  })

  test('a transaction that the server ends for standing open too long counts as an attempt', async () => {
    const { broker, consumer, database, errors, finished } = await stage({
      handle: async (message, { tx }) => {
        if (message.key !== 'slow') return
        const { rows } = await tx.query<{ pid: number }>('select pg_backend_pid() as pid')
        await tx.query("set local idle_in_transaction_session_timeout = '20ms'")
        const backend = 'select from pg_stat_activity where pid = $1'
        await expect.poll(async () => (await database.pool.query(backend, [rows[0]?.pid])).rowCount).toBe(0)
        await tx.query('select 1')
      },
      retry: { attempts: 2, maxDelayMs: 1, minDelayMs: 1 },
    })
    broker.deliver(0, [{ key: 'slow' }])
    await finished(1)
    expect(consumer.stats()).toMatchObject({ deadLettered: 1, handled: 0 })
    expect(errors).toHaveLength(2)
    broker.deliver(0, [{ key: 'a' }])
    await finished(2)
  })
})
