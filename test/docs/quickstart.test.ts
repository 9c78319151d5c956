import { spawn } from 'node:child_process'
import path from 'node:path'
import { expect, test } from 'vitest'
import { createTestDatabase, describeWith } from '../support/services.ts'
import { track } from '../support/leaks.ts'
import { ROOT } from './markdown.ts'

describeWith('postgres18', "the README's quickstart", () => {
  test('runs as it stands: an order is committed, and billing has one invoice for it', async () => {
    const database = await createTestDatabase({ migrate: false })
    await database.pool.query('create table orders (id text primary key, total integer not null)')
    await database.pool.query('create table invoices (order_id text not null, total integer not null)')
    const child = spawn(process.execPath, [path.join(ROOT, 'examples/quickstart.ts')], {
      env: { ...process.env, DATABASE_URL: database.url },
      stdio: ['ignore', 'inherit', 'pipe'],
    })
    const release = track('the quickstart', async () => child.kill('SIGKILL'))
    let errors = ''
    child.stderr.on('data', (chunk: Buffer) => (errors += chunk.toString()))
    const ended = new Promise<void>((resolve) => child.on('exit', () => resolve()))
    let rows: unknown[] = []
    while (rows.length === 0 && child.exitCode === null) {
      rows = (await database.pool.query('select * from invoices, pg_sleep(0.05)')).rows
    }
    expect(errors).toBe('')
    expect(rows).toMatchObject([{ order_id: 'o-1', total: 42 }])
    const { rows: inbox } = await database.pool.query('select consumer, state from inbox.message')
    expect(inbox).toEqual([{ consumer: 'billing', state: 'done' }])
    child.kill('SIGKILL')
    await ended
    release()
    await database.close()
  })
})
