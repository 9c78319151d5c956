import pg from 'pg'
import { expect, onTestFinished, test } from 'vitest'
import { isMillraceError } from '../../src/core/errors.ts'
import { migrate } from '../../src/postgres/migrator.ts'
import { startPostgres } from '../../src/testing/services/index.ts'
import { track } from '../support/leaks.ts'
import { describeWith } from '../support/services.ts'
import { poll, Recorded, slotAt, stageOn } from '../support/wal-stage.ts'

for (const version of [15, 18] as const)
  describeWith(`private postgres${version}`, `a private PostgreSQL ${version}`, () => {
    test('stops fast once a lagging stream is closed', async () => {
      const server = await startPostgres({ version })
      const release = track('server', () => server.dispose())
      onTestFinished(async () => {
        release()
        await server.dispose()
      })
      const pool = new pg.Pool({ connectionString: server.url })
      pool.on('error', () => {})
      onTestFinished(() => pool.end())
      await migrate(pool)
      const stage = await stageOn(pool, server.url, 'lagging')
      const seen = new Recorded()
      const stream = await stage.open(seen)
      stream.resume()
      await stage.append('acknowledged')
      await seen.until(() => seen.order.at(-1) === 'commit')
      stream.acknowledge(seen.lastEnd)
      await slotAt(stage, (lsn) => lsn >= seen.lastEnd)
      await stage.append('not acknowledged')
      await seen.until(() => seen.messages.length === 2 && seen.order.at(-1) === 'commit')
      let stopped = false
      const stopping = server.stop('fast').then(() => (stopped = true))
      // It waits for us: everybody else is turned away, and it is still there.
      await poll(async () => {
        const error = await pool.query('select 1').then(
          () => undefined,
          (thrown: unknown) => thrown,
        )
        return (error as { code?: string } | undefined)?.code === '57P03'
      })
      expect(stopped).toBe(false)
      await stream.close()
      await stopping
      expect(isMillraceError(await stream.ended)).toBe(false)
    })

    test('a server that dies ends the stream', async () => {
      const server = await startPostgres({ version })
      const release = track('server', () => server.dispose())
      onTestFinished(async () => {
        release()
        await server.dispose()
      })
      const pool = new pg.Pool({ connectionString: server.url })
      pool.on('error', () => {})
      onTestFinished(() => pool.end())
      await migrate(pool)
      const stage = await stageOn(pool, server.url, 'dying')
      const stream = await stage.open(new Recorded())
      stream.resume()
      await server.kill()
      expect(await stream.ended).toMatchObject({ code: 'CONNECTION_LOST' })
      await expect(stage.open(new Recorded())).rejects.toMatchObject({ code: 'CONNECTION_LOST' })
    })
  })
