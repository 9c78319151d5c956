/** What a daemon that streams costs while nothing happens, and while its broker is away and a backlog grows. */
import { readFile } from 'node:fs/promises'
import { expect, onTestFinished, test } from 'vitest'
import { type PrivateServer, startKafka, startNats } from '../../src/testing/services/index.ts'
import type { CliProcess } from '../integration/cli-process.ts'
import { disposed } from '../support/outbox-server.ts'
import { createTestDatabase, describeWith } from '../support/services.ts'
import { type BrokerName, campaign, faultStage, reads, seed } from './fault-stage.ts'
import { passes } from './model-random.ts'

/** Of a core. */
const IDLE_PERCENT = 3
const IDLE_MS = campaign > 1 ? 20_000 : 8000
const AWAY_MS = campaign > 1 ? 600_000 : 8000
const BACKLOG = 60_000
const MIB = 1024 * 1024
/** What Linux counts the time of a process in. */
const TICK_MS = 10

async function cpuMs(daemon: CliProcess): Promise<number> {
  const fields = (await readFile(`/proc/${daemon.pid}/stat`, 'utf8')).replace(/^.*\) /s, '').split(' ')
  return (Number(fields[11]) + Number(fields[12])) * TICK_MS
}

/** The memory of the process, now and at most, bytes. */
async function memoryOf(daemon: CliProcess): Promise<{ readonly now: number; readonly peak: number }> {
  const status = await readFile(`/proc/${daemon.pid}/status`, 'utf8')
  const of = (name: string): number => Number(new RegExp(`${name}:\\s+(\\d+) kB`).exec(status)?.[1]) * 1024
  return { now: of('VmRSS'), peak: of('VmHWM') }
}

async function staged(broker: BrokerName, server: PrivateServer) {
  const database = await createTestDatabase()
  onTestFinished(() => database.close())
  const address = server.address
  return faultStage({ broker, brokerAddress: address, database: () => database.url, name: database.name })
}

for (const { broker, limit, start } of [
  { broker: 'kafka', limit: 256, start: startKafka },
  { broker: 'nats', limit: 160, start: startNats },
] as const) {
  describeWith(
    ['postgres18', `private ${broker}`],
    `what a daemon that streams to ${broker} costs, seed ${seed}`,
    () => {
      test(
        `at most ${limit} MiB with the broker away and a backlog, and next to nothing while it is idle`,
        { timeout: 240_000 + AWAY_MS },
        async () => {
          const server = disposed(broker, await start())
          const stage = await staged(broker, server)
          const daemon = stage.daemon()
          await reads(daemon, 'replication')
          await stage.writers.more(300)
          await server.stop()
          await stage.writers.close()
          await stage.pool.query(
            `insert into outbox.record (shard, id, topic, key, type, payload)
         select shard, gen_random_uuid(), $1, key, 'x',
                convert_to(json_build_object('key', key, 'n', n, 'rest', repeat('x', 1000))::text, 'UTF8')
         from generate_series(1, $2::integer) i
         cross join lateral (select 'bulk ' || i % 100 as key, (i - 1) / 100 + 1 as n) k
         cross join lateral (select outbox.shard_of(key) as shard) s`,
            [stage.topic, BACKLOG],
          )
          await passes(AWAY_MS)
          const away = await memoryOf(daemon)
          await server.start()
          const { rows } = await stage.pool.query('select count(*)::int as n from outbox.record')
          expect(rows[0].n).toBeGreaterThan(BACKLOG)
          await stage.settle()
          const settled = await memoryOf(daemon)
          // What it has just done is over.
          await passes(3000)
          let percent = Infinity
          // On cores that others keep busy the same work counts for more; what runs in a loop does so each time.
          for (let round = 1; round <= 3 && percent >= IDLE_PERCENT; round++) {
            const [spent, at] = [await cpuMs(daemon), performance.now()]
            await passes(IDLE_MS)
            percent = Math.min(percent, (100 * ((await cpuMs(daemon)) - spent)) / (performance.now() - at))
          }
          console.log(
            `${broker}: ${Math.round(away.now / MIB)} MiB with the broker away and ${BACKLOG} events waiting; ` +
              `${Math.round(settled.now / MIB)} MiB once they are published, ${Math.round(settled.peak / MIB)} MiB at most; ` +
              `idle ${percent.toFixed(2)} % of a core`,
          )
          expect(settled.peak).toBeLessThan(limit * MIB)
          expect(percent).toBeLessThan(IDLE_PERCENT)
          await stage.finish(daemon)
        },
      )
    },
  )
}
