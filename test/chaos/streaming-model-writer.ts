/**
 * A writer of the streaming model whose transactions mix records with events in the WAL alone, under one key each, and
 * may be prepared. It remembers by which place in the WAL each commit was there.
 */
import pg from 'pg'
import { createOutbox } from '../../src/producer/index.ts'
import { type Random, passes } from './model-random.ts'
import { type Course, TOPIC } from './model-writers.ts'

/** The topic of the events that are in the WAL alone. */
export const ALONE = 'alone'

/** A committed event, and a place in the WAL that is behind its commit. */
export interface Placed {
  readonly id: string
  readonly alone: boolean
  readonly lsn: bigint
}

const outbox = createOutbox()

export class MixedWriter {
  readonly placed: Placed[] = []
  readonly #client: pg.Client
  readonly #course: Course
  readonly #key: string
  readonly #mayPrepare: boolean
  readonly #random: Random
  #n = 0
  #alone = 0
  #prepared = 0

  constructor(url: string, index: number, course: Course, random: Random, mayPrepare: boolean) {
    this.#client = new pg.Client({ connectionString: url, application_name: 'model-writer' })
    this.#course = course
    this.#key = `mixed${index}`
    this.#mayPrepare = mayPrepare
    this.#random = random
  }

  async run(): Promise<void> {
    this.#client.on('error', () => {})
    await this.#client.connect()
    try {
      while (this.#course.committed < this.#course.target) {
        await this.#transaction()
        await passes(this.#random.below(8))
      }
    } finally {
      await this.#client.end()
    }
  }

  async #transaction(): Promise<void> {
    const { chance, below } = this.#random
    const client = this.#client
    await client.query('begin')
    if (chance(0.3)) await client.query('set local synchronous_commit = off')
    const written: { readonly id: string; readonly alone: boolean }[] = []
    let n = this.#n
    let alone = this.#alone
    for (let parts = 1 + below(3); parts > 0; parts--) {
      const undone = chance(0.15)
      if (undone) await client.query('savepoint one')
      const count = 1 + below(chance(0.1) ? 30 : 3)
      const isAlone = chance(0.4)
      const first = isAlone ? alone : n
      const key = isAlone ? `${this.#key}-alone` : this.#key
      const topic = isAlone ? ALONE : TOPIC
      const events = Array.from({ length: count }, (_, i) => {
        return { topic, key, type: 't', payload: { key, n: first + 1 + i } }
      })
      const { ids } = isAlone ? await outbox.appendWalOnly(client, events) : await outbox.append(client, events)
      if (undone) {
        await client.query('rollback to one')
        continue
      }
      for (const id of ids) written.push({ id, alone: isAlone })
      if (isAlone) alone += count
      else n += count
    }
    if (chance(0.1)) await passes(below(40))
    if (chance(0.12)) return void (await client.query('rollback'))
    await this.#commit()
    const { rows } = await client.query<{ lsn: string }>(
      `select (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::text as lsn`,
    )
    const lsn = BigInt(rows[0]?.lsn ?? '0')
    for (const one of written) this.placed.push({ ...one, lsn })
    this.#n = n
    this.#alone = alone
    this.#course.committed += written.length
  }

  async #commit(): Promise<void> {
    const { chance, below } = this.#random
    if (!this.#mayPrepare || !chance(0.2)) return void (await this.#client.query('commit'))
    const name = `${this.#key} ${++this.#prepared} ${process.pid} ${below(1e9)}`
    await this.#client.query(`prepare transaction '${name}'`)
    await passes(below(30))
    await this.#client.query(`commit prepared '${name}'`)
  }
}
