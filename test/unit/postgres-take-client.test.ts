import { createServer, type AddressInfo, type Server } from 'node:net'
import pg from 'pg'
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest'
import { takeClient } from '../../src/postgres/take-client.ts'

const AUTHENTICATED = message('R', Buffer.from([0, 0, 0, 0]))
const READY = message('Z', Buffer.from('I'))
const GOING_DOWN = message('E', Buffer.from('SFATAL\0C57P01\0Mterminating connection due to administrator command\0\0'))

function message(kind: string, body: Buffer): Buffer {
  const head = Buffer.from(`${kind}\0\0\0\0`)
  head.writeInt32BE(body.length + 4, 1)
  return Buffer.concat([head, body])
}

describe('a client out of the pool', () => {
  let server: Server
  let pool: pg.Pool
  const uncaught: unknown[] = []
  const listener = (error: unknown): void => void uncaught.push(error)

  beforeEach(async () => {
    // A server that goes down as it greets; a busy client reads both at once.
    server = createServer((socket) => {
      socket.on('error', () => {})
      socket.once('data', () => socket.end(Buffer.concat([AUTHENTICATED, READY, GOING_DOWN])))
    })
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
    const { port } = server.address() as AddressInfo
    pool = new pg.Pool({ database: 'd', host: '127.0.0.1', password: '', port, ssl: false, user: 'u' })
    uncaught.length = 0
    process.on('uncaughtException', listener)
  })
  afterEach(async () => {
    process.removeListener('uncaughtException', listener)
    await new Promise((resolve) => server.close(resolve))
  })

  test('that is lost with the greeting ends nobody: its first statement says so', async () => {
    for (let times = 0; times < 20; times++) {
      const client = await takeClient(pool)
      await expect(client.query('select 1')).rejects.toThrow(/terminat|queryable/)
      client.release(true)
    }
    expect(uncaught).toEqual([])
    // One listener, however often a client was taken.
    expect(pool.listenerCount('connect')).toBe(1)
    await pool.end()
  })

  test.each(['closed', 'given back, and closed with the pool'])(
    'that Postgres ends while it is %s ends nobody',
    async (how) => {
      server.removeAllListeners('connection')
      const told: unknown[] = []
      server.on('connection', (socket) => {
        socket.on('error', () => {})
        socket.once('data', () => {
          socket.write(Buffer.concat([AUTHENTICATED, READY]))
          socket.once('data', () => {
            told.push(how)
            socket.end(GOING_DOWN)
          })
        })
      })
      const client = await takeClient(pool)
      client.release(how === 'closed')
      await pool.end()
      await vi.waitFor(() => expect(told).toHaveLength(1))
      await new Promise((resolve) => server.close(resolve))
      expect(uncaught).toEqual([])
    },
  )

  test('comes from whatever has `connect`', async () => {
    const client = { on() {}, query: async () => ({ rows: [] }), release() {}, removeListener() {} }
    expect(await takeClient({ ...client, connect: async () => client })).toBe(client)
  })
})
