/** What `publish` tells of each message, and the publisher's life. */
import assert from 'node:assert/strict'
import type { ConformanceCase } from '../conformance-case.ts'
import { keyedMessages, sampleKeys, sampleMessage } from '../sample-message.ts'
import { onStage } from '../stage.ts'
import { assertComplete } from './delivery.ts'

export const publishingCases: readonly ConformanceCase[] = [
  onStage('an empty batch is stored at once', async (stage) => {
    const publisher = await stage.publisher()
    assert.deepEqual(await stage.outcome(publisher, []), [])
  }),

  onStage(
    'a topic that does not exist is answered with poison or retry, never with a throw or silence',
    async (stage) => {
      const publisher = await stage.publisher({ timeoutMs: Math.min(10_000, stage.deadlineMs / 2) })
      const missing = stage.context.topic()
      const batch = keyedMessages(missing, ['a', 'b'], 4)
      const unresolved = await stage.outcome(publisher, batch)
      assert.deepEqual(
        unresolved.map((entry) => entry.index),
        [0, 1, 2, 3],
        'none is stored, and each is told, by rising index',
      )
      for (const entry of unresolved) {
        assert.ok(entry.class === 'poison' || entry.class === 'retry', `class ${entry.class}`)
        assert.ok(entry.error instanceof Error && entry.error.message.length > 0)
      }
      const topic = await stage.topic()
      await stage.publish(publisher, [sampleMessage(topic)])
    },
  ),

  onStage(
    'a message too large is poison; the others of its batch are stored, later ones of its key are unsent',
    async (stage) => {
      const topic = await stage.topic()
      const limit = (await stage.main()).capabilities.maxMessageBytes as number
      const publisher = await stage.publisher()
      const batch = [
        sampleMessage(topic, { key: 'large', payload: Buffer.from('before') }),
        sampleMessage(topic, { key: 'other', payload: Buffer.from('0') }),
        sampleMessage(topic, { key: 'large', payload: Buffer.alloc(limit + 1) }),
        sampleMessage(topic, { key: 'large', payload: Buffer.from('after') }),
        sampleMessage(topic, { key: 'other', payload: Buffer.from('1') }),
        sampleMessage(topic, { payload: Buffer.from('no key') }),
      ]
      const unresolved = await stage.outcome(publisher, batch)
      assert.deepEqual(
        unresolved.map(({ index, outcome, class: errorClass }) => ({ index, outcome, errorClass })),
        [
          { index: 2, outcome: 'failed', errorClass: 'poison' },
          { index: 3, outcome: 'unsent', errorClass: 'poison' },
        ],
      )
      const reader = await stage.reader({ group: stage.context.group(), topics: [topic] })
      await reader.count(4)
      assert.deepEqual(reader.textsOf('large'), ['before'])
      assert.deepEqual(reader.textsOf('other'), ['0', '1'])
      assert.deepEqual(reader.textsOf(null), ['no key'])
    },
    (capabilities) => capabilities.maxMessageBytes !== undefined,
  ),

  onStage(
    'a second message with a known id is dropped in the dedupe window, else delivered with that id',
    async (stage) => {
      const topic = await stage.topic()
      const main = await stage.main()
      const publisher = await stage.publisher()
      const twice = sampleMessage(topic, { key: 'k', payload: Buffer.from('twice') })
      await stage.publish(publisher, [twice])
      await stage.publish(publisher, [twice])
      // The end of the key's messages: what stands before it is all there is.
      await stage.publish(publisher, [sampleMessage(topic, { key: 'k', payload: Buffer.from('end') })])
      const reader = await stage.reader({ group: stage.context.group(), topics: [topic] })
      await reader.until('the last message', () => reader.textsOf('k').includes('end'))
      const expected = main.capabilities.dedupeWindowMs > 0 ? ['twice', 'end'] : ['twice', 'twice', 'end']
      assert.deepEqual(reader.textsOf('k'), expected)
      assert.equal(new Set(reader.received.map((message) => message.id)).size, 2)
    },
  ),

  onStage('what concurrent publishers send lands whole, each key in order', async (stage) => {
    const topic = await stage.topic(6)
    const keys = Array.from({ length: 8 }, (_, p) => sampleKeys(4).map((key) => `${p}-${key}`))
    await Promise.all(
      keys.map(async (own) => {
        const publisher = await stage.publisher()
        for (let batch = 0; batch < 5; batch++) {
          await stage.publish(publisher, keyedMessages(topic, own, 100, batch * 25))
        }
      }),
    )
    const reader = await stage.reader({ group: stage.context.group(), topics: [topic] })
    await reader.count(4000)
    assert.equal(reader.received.length, 4000)
    assertComplete(reader, keys.flat(), 125)
  }),

  onStage('publish rejects on a publisher that was not started', async (stage) => {
    const topic = await stage.topic()
    const publisher = (await stage.main()).publisher()
    await assert.rejects(stage.within(publisher.publish([sampleMessage(topic)]), 'the refusal'))
    await stage.within(publisher.close(), 'close')
  }),

  onStage('publish rejects, and sends nothing, when the signal has already aborted', async (stage) => {
    const topic = await stage.topic()
    const publisher = await stage.publisher()
    const never = sampleMessage(topic, { key: 'k', payload: Buffer.from('never') })
    await assert.rejects(stage.within(publisher.publish([never], AbortSignal.abort()), 'the refusal'))
    await stage.publish(publisher, [sampleMessage(topic, { key: 'k', payload: Buffer.from('end') })])
    const reader = await stage.reader({ group: stage.context.group(), topics: [topic] })
    await reader.until('the last message', () => reader.textsOf('k').includes('end'))
    assert.deepEqual(reader.textsOf('k'), ['end'])
  }),

  onStage('close waits for what is in flight, is idempotent, and publish after it rejects', async (stage) => {
    const topic = await stage.topic()
    const publisher = await stage.publisher()
    const publishing = publisher.publish(keyedMessages(topic, sampleKeys(3), 30))
    const closing = publisher.close()
    assert.deepEqual(await stage.within(publishing, 'the batch in flight'), [])
    await stage.within(closing, 'close')
    await stage.within(publisher.close(), 'the second close')
    await assert.rejects(stage.within(publisher.publish([sampleMessage(topic)]), 'the refusal'))
  }),

  onStage('a topic is made once and deleted once, and neither minds being asked again', async (stage) => {
    const { admin } = await stage.main()
    const topic = stage.context.topic()
    await stage.within(admin.createTopic(topic, { partitions: 3 }), 'createTopic')
    await stage.within(admin.createTopic(topic, { partitions: 3 }), 'createTopic')
    await stage.within(admin.deleteTopic(topic), 'deleteTopic')
    await stage.within(admin.deleteTopic(topic), 'deleteTopic')
  }),
]
