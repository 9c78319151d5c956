/** `millrace parked`: what it prints, what it asks before, and what it leaves alone. */
import { afterEach, beforeEach, expect, test } from 'vitest'
import type { CommandIo } from '../../src/cli/command.ts'
import { runCli } from '../../src/cli/run-cli.ts'
import { createRelay } from '../../src/outbox-relay/relay.ts'
import { trackLifecycle } from '../support/leaks.ts'
import { appendSql } from '../support/outbox-writer.ts'
import { pickyBroker } from '../support/picky-broker.ts'
import { CliProcess } from './cli-process.ts'
import { type TestDatabase, createTestDatabase, describeWith } from '../support/services.ts'

for (const version of [18, 15] as const) {
  describeWith(`postgres${version}`, `millrace parked on PostgreSQL ${version}`, () => {
    let database: TestDatabase
    let id = ''
    beforeEach(async () => {
      database = await createTestDatabase({ version })
      const broker = pickyBroker()
      broker.refuses = () => true
      id = await appendSql(database.pool, 'k', 1)
      await appendSql(database.pool, 'k', 2)
      await appendSql(database.pool, '\u001b[31m', 3, 'odd')
      const relay = trackLifecycle('relay', createRelay({ broker, capture: 'polling', postgres: database.pool }))
      await relay.start()
      while (relay.stats().parked.records < 3) await new Promise((resolve) => setTimeout(resolve, 5))
      // No relay is at work from here on: the requests stay to be seen.
      await relay.stop()
    })
    afterEach(() => database.close())

    async function run(args: readonly string[], ask?: (question: string) => string) {
      let out = ''
      let err = ''
      const io: CommandIo = {
        environment: { DATABASE_URL: database.url },
        err: (text) => void (err += text),
        out: (text) => void (out += text),
        ...(ask === undefined ? {} : { ask: async (question: string) => ask(question) }),
      }
      const code = await runCli(['parked', ...args], io)
      return { code, err, out }
    }
    const asked = async (): Promise<unknown[]> =>
      (await database.pool.query('select key, replay from outbox.parked_key where asked_at is not null')).rows

    test('list prints no payload and no control character, and tells how to go on', async () => {
      const { code, err, out } = await run(['list'])
      expect({ code, err }).toEqual({ code: 0, err: '' })
      expect(out).toContain(id)
      expect(out).toContain('poison ×1: the event is refused')
      expect(out).toContain('3 events of 2 keys parked')
      expect(out).not.toContain('"n"')
      expect(out).not.toContain('\u001b')
      const page = await run(['list', '--limit', '1', '--json'])
      expect(JSON.parse(page.out)).toMatchObject({ id, key: 'k', reason: 'poison' })
      expect((await run(['list', '--limit', '1'])).out).toMatch(/go on with --after \d+/)
      expect((await run(['list', '--topic', 'odd'])).out).toContain('1 event of 1 key parked')
    })

    test('a reader that goes away, as head does, is no failure', async () => {
      const listing = new CliProcess(['parked', 'list', '--database-url', database.url])
      listing.closeOutput()
      expect(await listing.ended).toMatchObject({ code: 0, signal: null })
    })

    test('show prints the payload only when it is asked for', async () => {
      expect((await run(['show', '--id', id])).out).not.toContain('payload')
      expect(JSON.parse((await run(['show', '--id', id, '--payload', '--json'])).out)).toMatchObject({
        payload: '{"key":"k","n":1}',
      })
      const none = await run(['show', '--id', '00000000-0000-4000-8000-000000000000'])
      expect(none).toMatchObject({ code: 1, out: '' })
    })

    test('replay asks at a terminal, and without one it wants --yes', async () => {
      expect(await run(['replay', '--key', 'k'])).toMatchObject({ code: 1, err: expect.stringContaining('--yes') })
      expect(await run(['replay', '--key', 'k'], () => 'n')).toMatchObject({ code: 1, err: 'nothing was done\n' })
      expect(await run(['replay', '--key', 'k', '--dry-run'])).toMatchObject({
        code: 0,
        out: 'would replay 2 events of 1 key\n',
      })
      expect(await asked()).toEqual([])
      let question = ''
      const answered = await run(['replay', '--id', id], (text) => ((question = text), 'y'))
      expect(answered).toMatchObject({ code: 0, out: 'asked to replay 2 events of 1 key\n' })
      expect(question).toContain('2 events of 1 key')
      expect(await asked()).toEqual([{ key: 'k', replay: true }])
    })

    test('discard wants a reason, and events that somebody chose', async () => {
      expect(await run(['discard', '--id', id, '--yes'])).toMatchObject({
        code: 2,
        err: expect.stringContaining('--reason'),
      })
      expect(await run(['discard', '--reason', 'r', '--yes'])).toMatchObject({
        code: 78,
        err: expect.stringContaining('--all'),
      })
      expect(await run(['discard', '--id', 'x', '--reason', 'r', '--yes'])).toMatchObject({ code: 78 })
      expect(await run(['discard', '--all', '--reason', 'r'])).toMatchObject({ code: 1 })
      expect(await asked()).toEqual([])
      const done = await run(['discard', '--id', id, '--reason', 'too large', '--yes', '--json'])
      expect({ code: done.code, count: JSON.parse(done.out) as unknown }).toEqual({
        code: 0,
        count: { keys: 1, records: 1 },
      })
      const { rows } = await database.pool.query(
        'select discard_reason, discard_by from outbox.parked_record where discard_at is not null',
      )
      expect(rows).toEqual([{ discard_reason: 'too large', discard_by: expect.stringMatching(/./) }])
    })
  })
}
