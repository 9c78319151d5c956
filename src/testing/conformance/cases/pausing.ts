/** One partition is held while the others flow. */
import assert from 'node:assert/strict'
import type { Partition, Publisher } from '../../../brokers/broker.ts'
import { delay, systemClock } from '../../../core/clock.ts'
import type { ConformanceCase } from '../conformance-case.ts'
import { nameOf } from '../recording-reader.ts'
import type { RecordingReader } from '../recording-reader.ts'
import { keyedMessages, sampleKeys } from '../sample-message.ts'
import { onStage } from '../stage.ts'
import type { Stage } from '../stage.ts'
import { assertComplete } from './delivery.ts'

/** For how long the absence of a hand-over is observed: nothing announces what does not happen. */
const ABSENCE_MS = 300

const KEYS = sampleKeys(24)
const ROUND = KEYS.length * 10

interface Flow {
  readonly publisher: Publisher
  readonly reader: RecordingReader
  readonly topic: string
  /** The partition that is held. */
  readonly held: Partition
  readonly heldKeys: readonly string[]
  readonly freeKeys: readonly string[]
}

/** A reader that has read one round, so that it is known which key lives where. */
async function flow(stage: Stage, onMessages?: (partition: Partition, reader: RecordingReader) => void): Promise<Flow> {
  const topic = await stage.topic(4)
  const publisher = await stage.publisher()
  const reader = await stage.reader({
    group: stage.context.group(),
    topics: [topic],
    onMessages: (partition, _, self) => onMessages?.(partition, self),
  })
  await stage.publish(publisher, keyedMessages(topic, KEYS, ROUND))
  await reader.count(ROUND)
  const held: Partition = { topic, partition: reader.received[0]?.partition ?? 0 }
  const heldKeys = new Set(reader.received.filter((m) => m.partition === held.partition).map((m) => m.key))
  return {
    publisher,
    reader,
    topic,
    held,
    heldKeys: KEYS.filter((key) => heldKeys.has(key)),
    freeKeys: KEYS.filter((key) => !heldKeys.has(key)),
  }
}

function publishRound({ publisher, topic }: Flow, stage: Stage, round: number): Promise<void> {
  return stage.publish(publisher, keyedMessages(topic, KEYS, ROUND, round * 10))
}

/** How many messages of the keys were handed over. */
function countOf(reader: RecordingReader, keys: readonly string[]): number {
  const wanted = new Set<string | null>(keys)
  return reader.received.reduce((sum, message) => sum + (wanted.has(message.key) ? 1 : 0), 0)
}

export const pausingCases: readonly ConformanceCase[] = [
  onStage(
    'a paused partition hands nothing over, the others go on, resume loses and repeats nothing',
    async (stage) => {
      const f = await flow(stage)
      const { reader, held, heldKeys, freeKeys } = f
      reader.pause([held])
      for (const round of [1, 2, 3]) {
        await publishRound(f, stage, round)
        await reader.until(
          'the other partitions',
          () => countOf(reader, freeKeys) === freeKeys.length * 10 * (round + 1),
        )
      }
      await delay(systemClock, ABSENCE_MS)
      assert.equal(countOf(reader, heldKeys), heldKeys.length * 10, 'nothing of the paused partition')
      reader.resume([held])
      await reader.count(ROUND * 4)
      assertComplete(reader, KEYS, 40)
    },
  ),

  onStage('pausing inside onMessages loses and repeats nothing after resume', async (stage) => {
    let pausing = false
    let pauses = 0
    const f = await flow(stage, (partition, reader) => {
      if (!pausing || partition.partition !== f.held.partition) return
      pauses++
      reader.pause([partition])
    })
    const { reader, held, freeKeys } = f
    pausing = true
    for (const round of [1, 2, 3]) {
      await publishRound(f, stage, round)
      await reader.until('the other partitions', () => countOf(reader, freeKeys) === freeKeys.length * 10 * (round + 1))
    }
    await reader.until('the first pause', () => pauses > 0)
    // Each resume lets at least one hand-over through, which pauses again.
    while (reader.received.length < ROUND * 4) {
      const before = reader.received.length
      reader.resume([held])
      await reader.until('a hand-over after resume', () => reader.received.length > before)
    }
    assertComplete(reader, KEYS, 40)
  }),

  onStage('pause and resume in quick turns lose and repeat nothing', async (stage) => {
    const f = await flow(stage)
    const { reader, held } = f
    const publishing = (async () => {
      for (const round of [1, 2, 3, 4, 5]) await publishRound(f, stage, round)
    })()
    for (let turn = 0; turn < 50; turn++) {
      reader.pause([held])
      await delay(systemClock, turn % 5)
      reader.resume([held])
      await delay(systemClock, turn % 3)
    }
    await publishing
    await reader.count(ROUND * 6)
    assertComplete(reader, KEYS, 60)
  }),

  onStage(
    'a slow partition does not slow the others',
    async (stage) => {
      // A slow partition, as a consumer makes one: each hand-over is worked off before the partition goes on.
      let slow = false
      const f = await flow(stage, (partition, reader) => {
        if (!slow || partition.partition !== f.held.partition) return
        reader.pause([partition])
        systemClock.setTimer(() => {
          if (reader.owned.has(nameOf(partition))) reader.resume([partition])
        }, 400)
      })
      const { reader, freeKeys } = f
      slow = true
      const tookMs: number[] = []
      for (let round = 1; round <= 10; round++) {
        const started = systemClock.monotonic()
        await publishRound(f, stage, round)
        await reader.until(
          'the other partitions',
          () => countOf(reader, freeKeys) === freeKeys.length * 10 * (round + 1),
        )
        tookMs.push(Math.round(systemClock.monotonic() - started))
      }
      // The machine may hold up a round; a slow partition would hold up most of them.
      const [, second = 0] = tookMs.toSorted((a, b) => b - a)
      assert.ok(second < 2000, `the rounds of the other partitions took ${tookMs.join(', ')} ms`)
      await reader.count(ROUND * 11)
      assertComplete(reader, KEYS, 110)
    },
    (capabilities) => capabilities.partitions,
  ),
]
