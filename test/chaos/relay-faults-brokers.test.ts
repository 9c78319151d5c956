/**
 * What happens to a daemon's broker, under load: restarts, kills, standing still, a connection that falls silent, slow
 * answers; and what the daemon needs meanwhile.
 */
import { readFile } from 'node:fs/promises'
import { expect, onTestFinished, test } from 'vitest'
import { slotName } from '../../src/outbox-relay/capture/replication/slot-name.ts'
import { type PrivateServer, startKafka, startKafkaCluster, startNats } from '../../src/testing/services/index.ts'
import { freePort } from '../../src/testing/services/ports.ts'
import type { CliProcess } from '../integration/cli-process.ts'
import { type KafkaProxy, kafkaProxy } from '../support/kafka-proxy.ts'
import { disposed, outboxServer } from '../support/outbox-server.ts'
import { createTestDatabase, describeWith } from '../support/services.ts'
import { silentProxy } from '../support/silent-proxy.ts'
import { type BrokerName, campaign, faultStage, reads, report, seed } from './fault-stage.ts'
import { passes } from './model-random.ts'

/** How long a broker stands still. */
const STILL_MS = campaign > 1 ? 20_000 : 8000

const MIB = 1024 * 1024

const FAULTS: readonly (readonly [string, (server: PrivateServer) => Promise<void>])[] = [
  ['a restart', (server) => server.restart()],
  [
    'a kill',
    async (server) => {
      await server.kill()
      await server.start()
    },
  ],
  [
    'standing still',
    async (server) => {
      process.kill(server.pid, 'SIGSTOP')
      await passes(STILL_MS)
      process.kill(server.pid, 'SIGCONT')
    },
  ],
]

/** The most memory that the process ever had, bytes. */
async function peakOf(daemon: CliProcess): Promise<number> {
  const status = await readFile(`/proc/${daemon.pid}/status`, 'utf8')
  return Number(/VmHWM:\s+(\d+) kB/.exec(status)?.[1]) * 1024
}

/** A daemon between a database of its own and the broker. */
async function stageTo(broker: BrokerName, brokerAddress: string, brokerSeenAt = brokerAddress) {
  const database = await createTestDatabase()
  onTestFinished(() => database.close())
  return faultStage({ broker, brokerAddress, brokerSeenAt, database: () => database.url, name: database.name })
}

for (const { broker, memory, start } of [
  { broker: 'kafka', memory: 256, start: startKafka },
  { broker: 'nats', memory: 160, start: startNats },
] as const) {
  describeWith(['postgres18', `private ${broker}`], `a daemon and its broker, ${broker}, seed ${seed}`, () => {
    test(
      'restarted, killed and standing still under load: nothing lost, publishing goes on, memory is bounded',
      { timeout: 180_000 * campaign },
      async () => {
        const server = disposed(broker, await start())
        const stage = await stageTo(broker, server.address)
        const daemon = stage.daemon('--publish-timeout-ms', '3000')
        await reads(daemon, 'replication')
        const times: { readonly name: string; readonly downAt: number; readonly upAt: number }[] = []
        for (const [name, fault] of Array.from({ length: campaign }, () => FAULTS).flat()) {
          await stage.writers.more(300)
          const downAt = Date.now()
          await fault(server)
          times.push({ downAt, name, upAt: Date.now() })
          await stage.writers.more(600)
          await passes(3000)
        }
        const peak = await peakOf(daemon)
        const judged = await stage.finish(daemon)
        for (const [name] of FAULTS) {
          // A message that was stored before the server said that it is up counts as none to wait for.
          const gaps = times.filter((one) => one.name === name).map(({ upAt }) => judged.backAfter(upAt))
          report(`${broker}: published again after ${name}`, gaps)
          for (const gap of gaps) expect(gap).toBeLessThan(9000)
        }
        console.log(`${broker}: the daemon had ${Math.round(peak / MIB)} MiB at most`)
        expect(peak).toBeLessThan(memory * MIB)
      },
    )
  })
}

describeWith(['postgres18', 'private kafka'], `a daemon and a cluster of three Kafka nodes, seed ${seed}`, () => {
  test(
    'one node after the other is killed under load: nothing lost, and each partition is published to again',
    { timeout: 240_000 * campaign },
    async () => {
      const cluster = disposed('a Kafka cluster', await startKafkaCluster())
      const stage = await stageTo('kafka', cluster.brokers.join())
      const daemon = stage.daemon()
      await reads(daemon, 'replication')
      const whole = (): Promise<unknown> =>
        Promise.all([0, 1, 2, 3].map((partition) => cluster.inSync(stage.topic, partition)))
      await whole()
      const killedAt: number[] = []
      const ledMs: number[] = []
      for (const node of Array.from({ length: campaign }, () => cluster.nodes).flat()) {
        await stage.writers.more(300)
        await node.kill()
        killedAt.push(Date.now())
        for (let partition = 0; partition < 4; partition++) await cluster.leaderOf(stage.topic, partition)
        ledMs.push(Date.now() - (killedAt.at(-1) ?? 0))
        await stage.writers.more(300)
        // Long enough for the death to be noticed and another to lead.
        await passes(4000)
        await node.start()
        await cluster.whole()
        await whole()
      }
      const judged = await stage.finish(daemon)
      const gaps = killedAt.map((at) => judged.allBackAfter(at))
      report('each partition is published to again after the death of one of three nodes', gaps)
      report('of these, until the cluster itself had leaders', ledMs)
      for (const [i, gap] of gaps.entries()) expect(gap).toBeLessThan(Math.max(15_000, 5000 + (ledMs[i] ?? 0)))
    },
  )
})

describeWith(['private postgres18', 'private kafka'], `a daemon and a slow or silent Kafka, seed ${seed}`, () => {
  test(
    'a slow broker: keep-alives during the backlog acknowledge nothing, the server does not give up, and a kill in it loses nothing',
    { timeout: 180_000 },
    async () => {
      const { proxy, server: kafka } = await proxiedKafka()
      // A walsender that hears nothing for so long gives up.
      const { pool, server } = await outboxServer(18, { wal_sender_timeout: '2s' })
      const stage = await faultStage({
        broker: 'kafka',
        brokerAddress: kafka.address,
        brokerSeenAt: proxy.address,
        database: () => server.url,
        name: `slow_${server.port}`,
      })
      const start = (): CliProcess => stage.daemon('--page-size', '20')
      let daemon = start()
      await reads(daemon, 'replication')
      await stage.writers.more(100)
      const said = daemon.log.length
      proxy.slow(400)
      const slowAt = performance.now()
      let looks = 0
      let behind = 0
      while (performance.now() - slowAt < 8000 * campaign) {
        const { rows } = await pool.query(AHEAD_SQL, [slotName('postgres', 'outbox')])
        expect(rows[0].ahead, 'the slot stands beyond the checkpoint').toBe(false)
        looks++
        behind = Math.max(behind, Number(rows[0].behind))
        await passes(20)
      }
      expect(looks).toBeGreaterThan(50)
      expect(behind, 'bytes of WAL that wait; without a backlog the test shows nothing').toBeGreaterThan(1_000_000)
      const ended = daemon.log.slice(said).filter((line) => line['message'] === 'the term ended; beginning anew')
      expect(ended).toEqual([])
      await daemon.kill()
      proxy.slow(0)
      daemon = start()
      await stage.finish(daemon)
    },
  )

  test(
    'a connection to Kafka that falls silent is given up, and publishing goes on',
    { timeout: 180_000 * campaign },
    async () => {
      const { proxy, server } = await proxiedKafka()
      const stage = await stageTo('kafka', server.address, proxy.address)
      const daemon = stage.daemon('--publish-timeout-ms', '2000')
      await reads(daemon, 'replication')
      const silentAt: number[] = []
      for (let n = 0; n < 2 * campaign; n++) {
        await stage.writers.more(300)
        proxy.freeze()
        silentAt.push(Date.now())
        await stage.writers.more(300)
        await passes(4000)
      }
      const judged = await stage.finish(daemon)
      const gaps = silentAt.map((at) => judged.silenceAfter(at))
      report('kafka: nothing was published when the broker fell silent, time-out 2 s, for', gaps)
      for (const gap of gaps) expect(gap).toBeLessThan(15_000)
    },
  )
})

describeWith(['postgres18', 'private nats'], `a daemon and a silent NATS, seed ${seed}`, () => {
  test(
    'a connection to NATS that falls silent is given up, and publishing goes on',
    { timeout: 180_000 * campaign },
    async () => {
      const server = disposed('nats', await startNats())
      const proxy = await silentProxy(new URL(server.url))
      onTestFinished(() => proxy.close())
      const stage = await stageTo('nats', server.address, new URL(proxy.url).host)
      const daemon = stage.daemon('--publish-timeout-ms', '2000')
      await reads(daemon, 'replication')
      const silentAt: number[] = []
      for (let n = 0; n < 2 * campaign; n++) {
        await stage.writers.more(300)
        proxy.silence()
        silentAt.push(Date.now())
        await stage.writers.more(300)
        await passes(4000)
      }
      const judged = await stage.finish(daemon)
      const gaps = silentAt.map((at) => judged.silenceAfter(at))
      report('nats: nothing was published when the broker fell silent, time-out 2 s, for', gaps)
      for (const gap of gaps) expect(gap).toBeLessThan(20_000)
    },
  )
})

// How the slot stands to what the relay has written.
const AHEAD_SQL = `
  select s.confirmed_flush_lsn > (select wal from outbox.checkpoint where wal is not null order by n desc limit 1) as ahead,
         pg_current_wal_lsn() - s.confirmed_flush_lsn as behind
  from pg_replication_slots s where s.slot_name = $1`

/** A Kafka that is reached through a network that a test can spoil, and, by us, past it. */
async function proxiedKafka(): Promise<{ proxy: KafkaProxy; server: PrivateServer }> {
  const port = await freePort()
  const proxy = await kafkaProxy(port)
  onTestFinished(() => proxy.close())
  const properties = { 'advertised.listeners': `PLAINTEXT://${proxy.address}` }
  return { proxy, server: disposed('kafka', await startKafka({ port, properties })) }
}
