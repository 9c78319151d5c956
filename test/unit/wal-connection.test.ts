import pg from 'pg'
import { describe, expect, test } from 'vitest'
import { systemClock } from '../../src/core/clock.ts'
import { openReplicationConnection } from '../../src/outbox-relay/capture/replication/replication-connection.ts'
import type { PgPool } from '../../src/postgres/sql.ts'

const options = { clock: systemClock, slot: 's', timeoutMs: 1000 }

/** A client that connects to nothing, as the pool would make it. */
class Unconnected extends pg.Client {
  static made: Unconnected[] = []
  readonly config: object
  constructor(config: pg.ClientConfig) {
    super(config)
    this.config = config
    Unconnected.made.push(this)
  }
  override connect(): Promise<never> {
    return Promise.reject(Object.assign(new Error('refused'), { code: 'ECONNREFUSED' }))
  }
}

describe('a replication connection', () => {
  test("is made as the pool's own are: class, host, TLS, password, hidden where they are hidden", async () => {
    const password = (): string => 's3cret'
    const ssl = { key: 'private', rejectUnauthorized: true }
    const pool = new pg.Pool({
      Client: Unconnected,
      host: 'db',
      max: 1,
      options: '-c x=y',
      password,
      ssl,
      user: 'relay',
    } as unknown as pg.PoolConfig)
    await expect(openReplicationConnection({ ...options, pool })).rejects.toMatchObject({ code: 'CONNECTION_LOST' })
    const [client] = Unconnected.made
    expect(client).toMatchObject({ host: 'db', replication: 'database', user: 'relay' })
    expect(client?.password).toBe(password)
    expect(client?.config).toMatchObject({ options: '-c x=y', ssl: { rejectUnauthorized: true } })
    expect(client?.config).toHaveProperty('ssl.key', 'private')
    expect(JSON.stringify(client?.config)).not.toMatch(/s3cret|private/)
    expect(Object.keys(client?.config as object)).not.toContain('password')
    expect(pool.totalCount).toBe(0)
    // And the pool's options are as they were.
    expect(pool.options).not.toHaveProperty('replication')
    await pool.end()
  })

  test('takes a connection string as the pool does', async () => {
    Unconnected.made = []
    const connectionString = 'postgres://relay:s3cret@db:7777/shop'
    const pool = new pg.Pool({ Client: Unconnected, connectionString } as unknown as pg.PoolConfig)
    const failure = await openReplicationConnection({ ...options, pool }).catch((error: unknown) => error)
    expect(Unconnected.made[0]).toMatchObject({ database: 'shop', host: 'db', password: 's3cret', port: 7777 })
    expect(`${String(failure)} ${JSON.stringify(failure)}`).not.toContain('s3cret')
    await pool.end()
  })

  test('refuses what is no pg.Pool, and pg.native, with the fix', async () => {
    const strange = { query: () => {}, connect: () => {} } as unknown as PgPool
    await expect(openReplicationConnection({ ...options, pool: strange })).rejects.toMatchObject({
      code: 'CONFIG_INVALID',
    })
    class Native {
      on(): void {}
    }
    const native = Object.assign(strange, { Client: Native, options: {} })
    await expect(openReplicationConnection({ ...options, pool: native })).rejects.toMatchObject({
      code: 'CONFIG_INVALID',
    })
  })
})
