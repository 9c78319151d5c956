/** What the tests of parking wait for, read and make. */
import { expect } from 'vitest'
import { systemClock } from '../../src/core/clock.ts'
import type { OutgoingMessage } from '../../src/core/message.ts'
import { Lease } from '../../src/outbox-relay/lease.ts'
import { read } from './outbox-writer.ts'
import type { TestDatabase } from './services.ts'

/** An event that is in no outbox. */
export function message(key: string | null, n: number): OutgoingMessage {
  const id = `01900000-0000-7000-8000-00000000000${n}`
  const payload = Buffer.from(JSON.stringify({ key, n }))
  return { id, topic: 'orders', key, type: 't', payload, headers: {}, timeMs: 0, seq: String(1000 + n) }
}

/** The numbers of a key, each at its first appearance. */
export function firstOf(stored: readonly OutgoingMessage[], key: string | null): number[] {
  return [...new Set(stored.filter((one) => one.key === key).map((one) => read(one.payload).n))]
}

/** Waits for a state, generously: the machine may be busy. */
export async function until(holds: () => boolean | Promise<boolean>): Promise<void> {
  const deadline = performance.now() + 50_000
  while (!(await holds())) {
    if (performance.now() > deadline) throw new Error(`not within 50 s: ${String(holds)}`)
    await new Promise((resolve) => setTimeout(resolve, 5))
  }
}

/** A member that holds all shards over a connection of its own. */
export async function joined({ pool }: TestDatabase) {
  const client = await pool.connect()
  const options = { clock: systemClock, holder: 'test', schema: 'outbox', ttlMs: 60_000 }
  const lease = (await Lease.acquire(client, options)) as Lease
  expect(lease).toBeDefined()
  const release = async (): Promise<void> => {
    await lease.release(client)
    client.release()
  }
  return { client, lease, release }
}
