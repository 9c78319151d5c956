/** A JetStream that syncs before it acknowledges: atomic batches against publishing one by one. */
import { startNats } from '../../src/testing/services/index.ts'
import { nats } from '../../src/brokers/nats/index.ts'
import type { Measure } from '../stage/measure.ts'
import { atLeast, ratioOf } from '../stage/row.ts'
import type { DrainFigures } from '../stage/stage.ts'
import { inTurns, medianOf } from '../stage/turns.ts'

export const fsync: Measure = {
  name: 'fsync',
  async run(stage) {
    const server = await startNats({ settings: { jetstream: { sync_interval: 'always' } } })
    const broker = nats({ durability: 'fsync', servers: server.address })
    const publish =
      (way: 'adapter' | 'adapter-fsync', events: number): (() => Promise<DrainFigures>) =>
      async () => {
        await broker.admin.deleteTopic('bench')
        await broker.admin.createTopic('bench')
        return stage.publish({ address: server.address, events, keys: 1000, topic: 'bench', way })
      }
    try {
      const drains = await inTurns(stage.options.rounds, {
        single: publish('adapter', stage.count(10_000)),
        batches: publish('adapter-fsync', stage.count(50_000)),
      })
      const batches = medianOf(drains.batches, (drain) => drain.perSecond)
      const single = medianOf(drains.single, (drain) => drain.perSecond)
      const what = 'JetStream that syncs always: atomic batches against one by one'
      return [atLeast(what, ratioOf(batches, single), batches / single, 8)]
    } finally {
      await broker.close()
      await server.dispose()
    }
  },
}
