/** How soon publishing goes on after a daemon was killed: by one that stands by, and by one that is started again. */
import { expect, onTestFinished, test } from 'vitest'
import type { CliProcess } from '../integration/cli-process.ts'
import { createTestDatabase, describeWith, services } from '../support/services.ts'
import { campaign, faultStage, reads, report, seed } from './fault-stage.ts'

async function staged() {
  const database = await createTestDatabase()
  onTestFinished(() => database.close())
  const brokerAddress = services().nats as string
  const stage = await faultStage({ broker: 'nats', brokerAddress, database: () => database.url, name: database.name })
  return stage
}

describeWith(['postgres18', 'nats'], `a killed relay and those after it, seed ${seed}`, () => {
  test.each([3])(
    'of %i daemons that stream one works; it is killed, and a standby publishes within two seconds',
    { timeout: 180_000 * campaign },
    async (count) => {
      const stage = await staged()
      const start = (): CliProcess => stage.daemon('--capture', 'replication')
      const daemons = [start()]
      await reads(daemons[0] as CliProcess, 'replication')
      const killedAt: number[] = []
      for (let kill = 0; kill < 3 * campaign; kill++) {
        while (daemons.length < count) daemons.push(start())
        const standbys = daemons.slice(1)
        await Promise.all(standbys.map((one) => one.logged({ state: 'standby' })))
        await stage.writers.more(200)
        await daemons.shift()?.kill()
        killedAt.push(Date.now())
        const works = await Promise.race(standbys.map((one) => one.logged({ state: 'relaying' }).then(() => one)))
        await reads(works, 'replication')
        daemons.sort((a, b) => Number(b === works) - Number(a === works))
      }
      const judged = await stage.finish(...daemons)
      const gaps = killedAt.map((at) => judged.backAfter(at))
      report(`a standby of ${count - 1} publishes after the kill`, gaps)
      for (const gap of gaps) expect(gap).toBeLessThan(5000)
    },
  )

  test.each(['polling', 'replication'] as const)(
    'a relay that is started again after a kill publishes at once, %s',
    { timeout: 180_000 * campaign },
    async (capture) => {
      const stage = await staged()
      let relay = stage.daemon('--capture', capture)
      await reads(relay, capture)
      const startedAt: number[] = []
      const bootMs: number[] = []
      for (let kill = 0; kill < 3 * campaign; kill++) {
        await stage.writers.more(200)
        await relay.kill()
        startedAt.push(Date.now())
        relay = stage.daemon('--capture', capture)
        // What Node takes to begin is the machine's.
        await relay.logged({ message: 'starting' })
        bootMs.push(Date.now() - (startedAt.at(-1) ?? 0))
        await reads(relay, capture)
      }
      const judged = await stage.finish(relay)
      const gaps = startedAt.map((at) => judged.backAfter(at))
      report(`${capture}: the relay publishes after its restart`, gaps)
      report(`${capture}: of these, until the process ran`, bootMs)
      for (const [i, gap] of gaps.entries()) expect(gap).toBeLessThan(4500 + 3 * (bootMs[i] ?? 0))
    },
  )
})
