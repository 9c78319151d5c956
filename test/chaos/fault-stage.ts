/**
 * What the fault tests have in common: writers before a daemon, a log behind it, the verdict after it, and how long it
 * took until something new was published.
 *
 * Every run has new seeds; a failure prints its own, and MILLRACE_KILL_SEED=<seed> makes the same choices again.
 * MILLRACE_CAMPAIGN=<n> repeats what a normal run does once.
 */
import { randomInt } from 'node:crypto'
import pg from 'pg'
import { expect, onTestFinished } from 'vitest'
import { CliProcess } from '../integration/cli-process.ts'
import { track } from '../support/leaks.ts'
import { seeded } from '../unit/flow-random.ts'
import { FaultWriters } from './fault-writers.ts'
import { type Found, type TopicReader, makeKafkaTopic, makeStream, readKafka, readNats } from './kill-readers.ts'
import { type Verdict, judge } from './kill-verdict.ts'
import { type Random, passes } from './model-random.ts'

export const seed = Number(process.env['MILLRACE_KILL_SEED'] ?? randomInt(2 ** 31))

/** How often a campaign repeats. */
export const campaign = Number(process.env['MILLRACE_CAMPAIGN'] ?? 1)

/** How long everything that was committed may take until it is published, when nothing fails any more. */
const LAST_WITHIN_MS = 90_000

/** How long after a fault a silence still is called its consequence. */
const WITHIN_MS = 4000

export type BrokerName = 'kafka' | 'nats'

export interface FaultStageOptions {
  readonly broker: BrokerName
  /** Where the broker is: `host:port`, several with commas. */
  readonly brokerAddress: string
  /** Where the daemon finds it, when it goes another way. */
  readonly brokerSeenAt?: string
  /** Where the daemon finds the database, when it goes another way. */
  readonly databaseSeenAt?: string
  /** Where the primary is now; it may move. */
  readonly database: () => string
  /** Unique in the run; the topic has it. */
  readonly name: string
}

export interface FaultStage {
  readonly pool: pg.Pool
  readonly random: Random
  readonly topic: string
  readonly writers: FaultWriters
  /** Starts a daemon as an operator does. */
  daemon(...flags: string[]): CliProcess
  /** The address as the command line takes it. */
  readonly brokerUrl: string
  /** Ends the writers, waits until all is published, ends the daemons, and judges. */
  finish(...daemons: readonly CliProcess[]): Promise<Judged>
  /** Ends the writers and waits until all is published; what was found, without a verdict. */
  settle(): Promise<ReadonlyMap<number, Found[]>>
}

export interface Judged extends Verdict {
  readonly found: ReadonlyMap<number, Found[]>
  /** How long after `from` something appeared in the broker that had not been there before, milliseconds. */
  backAfter(from: number): number
  /** The longest time, begun within `WITHIN_MS` after `from`, in which nothing new appeared, milliseconds. */
  silenceAfter(from: number): number
  /** As `backAfter`, for the last of the partitions to have something new. */
  allBackAfter(from: number): number
}

export async function faultStage(options: FaultStageOptions): Promise<FaultStage> {
  const { broker, brokerAddress, brokerSeenAt = brokerAddress, database, name } = options
  const topic = name
  await (broker === 'kafka' ? makeKafkaTopic(brokerAddress, topic) : makeStream(brokerAddress, topic))
  const random = seeded(seed)
  const writers = new FaultWriters({ random, topic, url: database })
  await writers.start()
  const release = track('SQL writers', () => writers.close())
  const pools = new Map<string, pg.Pool>()
  const brokerUrl = `${broker}://${brokerSeenAt}`
  let reader: TopicReader | undefined
  onTestFinished(async () => {
    await writers.close()
    release()
    await reader?.close()
    await Promise.all([...pools.values()].map((pool) => pool.end()))
  })
  const poolNow = (): pg.Pool => {
    const url = database()
    let pool = pools.get(url)
    if (pool === undefined) {
      pool = new pg.Pool({ connectionString: url })
      pool.on('error', () => {})
      pools.set(url, pool)
    }
    return pool
  }
  const settle = async (): Promise<ReadonlyMap<number, Found[]>> => {
    await writers.finish()
    reader ??= await (broker === 'kafka' ? readKafka(brokerAddress, topic) : readNats(brokerAddress, topic))
    await allIn(poolNow(), reader)
    return reader.found
  }
  return {
    brokerUrl,
    get pool() {
      return poolNow()
    },
    random,
    topic,
    writers,
    daemon: (...flags) =>
      new CliProcess([
        'relay',
        '--database-url',
        options.databaseSeenAt ?? database(),
        '--broker',
        brokerUrl,
        ...flags,
      ]),
    settle,
    async finish(...daemons) {
      const found = await settle()
      for (const daemon of daemons) daemon.signal('SIGTERM')
      for (const daemon of daemons) expect(await daemon.ended).toMatchObject({ code: 0, err: '' })
      await reader?.caughtUp()
      const verdict = await judge(poolNow(), found)
      const firsts = firstAppearances(found)
      const since = (list: readonly Found[], from: number): number =>
        list.reduce((least, { at }) => (at > from ? Math.min(least, at - from) : least), Infinity)
      return {
        ...verdict,
        found,
        backAfter: (from) => since([...firsts.values()].flat(), from),
        silenceAfter(from) {
          const times = [...firsts.values()].flat().map(({ at }) => at)
          const after = [from, ...times.filter((at) => at > from).toSorted((a, b) => a - b)]
          return after.reduce((most, at, i) => {
            const before = after[i - 1] ?? at
            return before < from + WITHIN_MS ? Math.max(most, at - before) : most
          }, 0)
        },
        allBackAfter: (from) => Math.max(...[...firsts.values()].map((list) => since(list, from))),
      }
    },
  }
}

/** Resolves when every committed event is in the broker, or when it is too late for that. */
async function allIn(pool: pg.Pool, reader: TopicReader): Promise<void> {
  const { rows } = await pool.query<{ id: string }>('select id::text as id from outbox.record')
  const deadline = new AbortController()
  const late = passes(LAST_WITHIN_MS).then(() => deadline.abort())
  const all = (async () => {
    for (const { id } of rows) if (!deadline.signal.aborted) await reader.until(id)
  })()
  await Promise.race([all, late])
}

function firstAppearances(found: ReadonlyMap<number, readonly Found[]>): Map<number, Found[]> {
  const firsts = new Map<number, Found[]>()
  for (const [partition, messages] of found) {
    const ids = new Set<string>()
    firsts.set(
      partition,
      messages.filter(({ id }) => !ids.has(id) && ids.add(id)),
    )
  }
  return firsts
}

/** Prints a figure of this run. */
export function report(what: string, ms: readonly number[]): void {
  const sorted = ms.toSorted((a, b) => a - b).map(Math.round)
  console.log(`${what}: median ${sorted[Math.floor(sorted.length / 2)]} ms of ${sorted.join(', ')}`)
}

/** Resolves when the daemon reads in this way, for the first time after line `after` of its log. */
export async function reads(daemon: CliProcess, capture: 'polling' | 'replication', after = 0): Promise<void> {
  // Its first line says what it was told; it is not what it does.
  if (capture === 'replication') await daemon.logged({ message: 'reading by replication' }, after)
  else if (after === 0) await daemon.logged({ message: 'reading by polling' })
  else await daemon.logged({ capture, level: 'warn' }, after)
}
