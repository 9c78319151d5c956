/**
 * A relay in a process of its own, for the crash counter: its broker writes what it stores into the table public.sent,
 * and an event that says so kills the process. Arguments: the database's URL, the size of a page.
 */
import { setTimeout as passes } from 'node:timers/promises'
import pg from 'pg'
import type { Publisher } from '../../src/brokers/broker.ts'
import { createRelay } from '../../src/outbox-relay/relay.ts'
import { recordingBroker } from '../support/recording-broker.ts'

const [url = '', pageSize = '4'] = process.argv.slice(2)
const pool = new pg.Pool({ connectionString: url })
pool.on('error', () => {})

const publisher: Publisher = {
  start: async () => {},
  close: async () => {},
  async publish(batch) {
    for (const message of batch) {
      if (message.payload.toString().includes('"deadly"')) {
        process.kill(process.pid, 'SIGKILL')
        await passes(60_000)
      }
      await pool.query('insert into public.sent (key, payload) values ($1, $2)', [message.key, message.payload])
    }
    return []
  },
}

const relay = createRelay({
  broker: { ...recordingBroker(), publisher: () => publisher },
  capture: 'polling',
  pageSize: Number(pageSize),
  postgres: pool,
})
await relay.start()
process.stdout.write('relaying\n')
await new Promise((resolve) => process.once('SIGTERM', resolve))
await relay.stop()
await pool.end()
