/**
 * The crash counter: finds the event in whose publishing the process dies again and again, so that it is parked like
 * poison instead of stopping all others.
 *
 * # Steps
 *
 * 1. A process that takes a shard for the first time notes the shard's position (a digest of its newest checkpoint) and
 *    counts how often one began there: crash_start. The first page that is published, and a graceful end, set the count
 *    back, each of its own shards alone: relays that share read several groups in turn, and what the others publish says
 *    nothing of the group in which they die. Any progress changes the position.
 * 2. After STARTS starts at one position, or when a suspect is known, it is careful with these shards: it publishes one
 *    event of theirs at a time, and notes each durably before it is sent the first time (crash_suspect, calls + 1). The note is withdrawn when the call
 *    returns, whatever it says, or after SUSPECT_MS while it still is out.
 * 3. An event that has CALLS notes is condemned: it is parked with the reason `crash`, and not published.
 * 4. After as many events as two pages hold without a death, care ends, and what is left of the notes is deleted.
 *
 * # Why an innocent event is not parked
 *
 * A note is left behind only by a process that died within SUSPECT_MS of handing over one event for the first time, or
 * that lost its database in that time and died before it had it again. CALLS such deaths have to meet the same event,
 * and STARTS deaths without any progress must have gone before.
 * - The broker is away: a relay that cannot reach it does not begin; a call without an answer outlives SUSPECT_MS, and the
 *   note goes. Whoever kills a relay in the long wait for a broker kills it outside of that time.
 * - Postgres restarts: the term ends and the process lives; its next term withdraws the note before anything else.
 * - A kill between calls, while idle, in a poll, at a checkpoint, in a standby: no note is there. Such starts make the
 *   relay careful at worst, for as long as two pages take.
 * - SIGTERM and a rolling restart: the call returns before the term ends.
 * Left is somebody who kills six processes in a row with SIGKILL, three of them just when this event is handed over.
 * Even then nothing is lost: the event is parked, which the log says, and can be replayed.
 *
 * # Costs
 *
 * Two statements at the first term of a process and one after its first page. A careful relay makes three round trips an
 * event.
 */
import type { Clock, Timer } from '../../core/clock.ts'
import type { Logger } from '../../core/logger.ts'
import type { OutgoingMessage } from '../../core/message.ts'
import { type Sql, quoteIdentifier } from '../../postgres/sql.ts'
import { leaseLost } from '../lease.ts'
import { answered } from '../sessions.ts'
import { type FencedLease, fenceParameters, heldSql } from './fenced.ts'
import { shardOf } from './lane.ts'

/** Starts at one position before the relay becomes careful. */
const STARTS = 3

/** Calls that an event does not survive before it is condemned. */
const CALLS = 3

/** How long a call may be out before it is plain that this event does not kill. */
const SUSPECT_MS = 3000

/** The least number of events that are published with care. */
const MIN_CAREFUL = 1000

// Probes checkpoint_n downwards for each shard, once a process.
const startSql = (schema: string): string => `
  with ${heldSql(schema)}
  insert into ${schema}.crash_start (shard, position, starts)
  select o.shard, coalesce((
    select md5(row(c.base::text, c.target::text, c.after, c.wal, c.wal_tx, c.wal_rows)::text) from ${schema}.checkpoint c
    where c.shards @> array[o.shard] order by c.n desc limit 1), ''), 1
  from held, owned o order by o.shard
  on conflict (shard) do update set position = excluded.position,
    starts = case when crash_start.position = excluded.position then crash_start.starts + 1 else 1 end
  returning shard, position, starts`

// Reads a table of a few rows.
const suspectsSql = (schema: string): string => `
  select id, calls, shard from ${schema}.crash_suspect where shard = any($1::smallint[])`

const progressSql = (schema: string): string => `
  with ${heldSql(schema)}
  update ${schema}.crash_start s set starts = 0 from held, owned o where s.shard = o.shard`

const noteSql = (schema: string): string => `
  with ${heldSql(schema)}
  insert into ${schema}.crash_suspect (id, shard) select $4::uuid, o.shard from held, owned o
  on conflict (id) do update set calls = crash_suspect.calls + 1`

const withdrawSql = (schema: string): string => `delete from ${schema}.crash_suspect where id = $1::uuid`

const forgetSql = (schema: string): string => `
  with ${heldSql(schema)}
  delete from ${schema}.crash_suspect s using held, owned o where s.shard = o.shard`

/** What a term lends the counter. */
export interface CrashCounterTerm {
  readonly clock: Clock
  readonly lease: FencedLease
  readonly logger: Logger
  /** The most events of a page. */
  readonly pageSize: number
  readonly schema: string
  /** The connection that holds the lease. */
  readonly sql: Sql
}

interface Start {
  readonly position: string
  readonly shard: number
  readonly starts: number
}

/** The counter of one relay; it outlives the terms, because only a process that dies counts. */
export class CrashCounter {
  readonly #begun = new Set<number>()
  readonly #condemned = new Set<string>()
  #term: CrashCounterTerm | undefined
  #schema = ''
  /** The shards of which a start is noted, and no progress yet. */
  readonly #noted = new Set<number>()
  /** Events still to be published with care. */
  #careful = 0
  /** The shards whose events are. */
  #suspicious: ReadonlySet<number> = new Set()
  /** The event whose note may be there, and its timer. */
  #out: { readonly id: string; readonly timer: Timer } | undefined
  #withdrawing: Promise<void> | undefined
  /** The event that was noted last: a second call of it is not noted. */
  #last = ''

  /** Begins a term, or goes on with the shards that the lease holds now. Before any of them is relayed. */
  async begin(term: CrashCounterTerm): Promise<void> {
    this.#term = term
    this.#schema = quoteIdentifier(term.schema)
    const { clock, lease, logger, sql } = term
    const { shards } = lease.fence
    await this.#settleWithdrawal().catch(() => {})
    if (this.#out !== undefined) await this.#withdraw(this.#out.id)
    const starts = await this.#countStart(shards.filter((shard) => !this.#begun.has(shard)))
    const found = await answered(clock, sql.query(suspectsSql(this.#schema), [shards]))
    const suspects = found.rows as { id: string; calls: number; shard: number }[]
    for (const { id, calls } of suspects) if (calls >= CALLS) this.#condemned.add(id)
    const often = starts.filter((one) => one.starts > STARTS)
    if (often.length === 0 && suspects.length === 0) return
    this.#suspicious = new Set([...this.#suspicious, ...[...often, ...suspects].map(({ shard }) => shard)])
    // A page of each group may come before the one in question.
    const groups = new Set(often.map(({ position }) => position)).size
    this.#careful = Math.max(MIN_CAREFUL, (1 + Math.max(1, groups)) * term.pageSize)
    logger.warn(
      {
        starts: Math.max(0, ...often.map((one) => one.starts)),
        suspects: suspects.length,
        shards: [...this.#suspicious],
      },
      'relays ended here again and again without progress; events of these shards are published one by one for a while',
    )
  }

  /** Counts this process at the positions of these shards; returns the counts. */
  async #countStart(shards: readonly number[]): Promise<readonly Start[]> {
    if (shards.length === 0) return []
    const { clock, lease, sql } = this.#required()
    const { rows } = await answered(clock, sql.query(startSql(this.#schema), fenceParameters(lease, shards)))
    if (rows.length !== shards.length) throw leaseLost()
    for (const shard of shards) {
      this.#begun.add(shard)
      this.#noted.add(shard)
    }
    return rows as Start[]
  }

  /**
   * True while events of some shards are to be published one at a time, each between `before` and `after`. An event is
   * condemned only then, so that all before it of its key are stored when it is parked.
   */
  get careful(): boolean {
    return this.#careful > 0
  }

  /** True for an event that is to be published alone. */
  suspects(message: OutgoingMessage): boolean {
    return this.#careful > 0 && this.#suspicious.has(shardOf(message))
  }

  /** True while there is an event that kills the relay, and that is not parked yet. */
  get condemning(): boolean {
    return this.#condemned.size > 0
  }

  /** True for an event that kills the relay. */
  condemns(id: string): boolean {
    return this.#condemned.has(id)
  }

  /** A condemned event is parked. */
  async parked(id: string): Promise<void> {
    if (this.#condemned.delete(id)) await this.#withdraw(id)
  }

  /** Notes that this event is about to be published. */
  async before(message: OutgoingMessage): Promise<void> {
    const { id } = message
    if (this.#last === id) return
    this.#last = id
    const { clock, lease, sql } = this.#required()
    const parameters = fenceParameters(lease, [shardOf(message)])
    const noted = await answered(clock, sql.query(noteSql(this.#schema), [...parameters, id]))
    if (noted.rowCount !== 1) throw leaseLost()
    const timer = clock.setTimer(() => {
      this.#withdrawing = this.#withdraw(id)
      // What it met is thrown where the call returns.
      this.#withdrawing.catch(() => {})
    }, SUSPECT_MS)
    this.#out = { id, timer }
  }

  /** The call has returned, and the event is dealt with or is not. */
  async after(done: boolean): Promise<void> {
    await this.#settleWithdrawal()
    if (this.#out !== undefined) await this.#withdraw(this.#out.id)
    if (done && this.#careful > 0 && --this.#careful === 0) await this.#forget()
  }

  /** A page of these shards is published, or the relay ends well, or gives them away: their starts count no more. */
  async progress(shards: readonly number[] = [...this.#noted]): Promise<void> {
    if (this.#noted.size === 0) return
    const { clock, lease, sql } = this.#required()
    const noted = shards.filter((shard) => this.#noted.delete(shard) && lease.fence.shards.includes(shard))
    if (noted.length === 0) return
    await answered(clock, sql.query(progressSql(this.#schema), fenceParameters(lease, noted)))
  }

  async #withdraw(id: string): Promise<void> {
    const { clock, sql } = this.#required()
    if (this.#out?.id === id) this.#out.timer.clear()
    await answered(clock, sql.query(withdrawSql(this.#schema), [id]))
    if (this.#out?.id === id) this.#out = undefined
  }

  async #settleWithdrawal(): Promise<void> {
    const withdrawing = this.#withdrawing
    this.#withdrawing = undefined
    await withdrawing
  }

  async #forget(): Promise<void> {
    const { clock, lease, logger, sql } = this.#required()
    const { shards } = lease.fence
    await answered(clock, sql.query(forgetSql(this.#schema), fenceParameters(lease, shards)))
    this.#condemned.clear()
    this.#suspicious = new Set()
    logger.info({}, 'no relay ended for a while; events are published in pages again')
  }

  #required(): CrashCounterTerm {
    if (this.#term === undefined) throw new TypeError('the crash counter has not begun')
    return this.#term
  }
}
