/** What is published arrives, whole, in the order of its key. */
import assert from 'node:assert/strict'
import type { OutgoingMessage } from '../../../core/message.ts'
import type { ConformanceCase } from '../conformance-case.ts'
import type { RecordingReader } from '../recording-reader.ts'
import { keyedMessages, sampleKeys, sampleMessage } from '../sample-message.ts'
import { onStage } from '../stage.ts'

/** The message with this id was handed over, with everything it was sent with. */
export function assertIntact(reader: RecordingReader, sent: OutgoingMessage): void {
  const received = reader.received.find((message) => message.id === sent.id)
  assert.ok(received, `message ${sent.id} arrived`)
  assert.deepEqual(
    { topic: received.topic, key: received.key, type: received.type, timeMs: received.timeMs },
    { topic: sent.topic, key: sent.key, type: sent.type, timeMs: sent.timeMs },
  )
  assert.ok(received.payload?.equals(sent.payload), `the ${sent.payload.length} bytes of the payload are intact`)
  assert.deepEqual({ ...received.headers }, { ...sent.headers })
  assert.ok(received.sizeBytes >= sent.payload.length, 'sizeBytes covers the payload')
}

/** Every key's payloads are 0, 1, 2 … without a gap, a repetition or an inversion. */
export function assertComplete(reader: RecordingReader, keys: readonly string[], perKey: number): void {
  const expected = Array.from({ length: perKey }, (_, i) => String(i)).join()
  const byKey = Map.groupBy(reader.received, (message) => message.key)
  for (const key of keys) {
    const texts = (byKey.get(key) ?? []).map((message) => String(message.payload)).join()
    assert.equal(texts, expected, `order and completeness of ${key}`)
  }
}

const everyByte = Buffer.from(Array.from({ length: 256 }, (_, i) => i))

export const deliveryCases: readonly ConformanceCase[] = [
  onStage('a group reads a batch with id, key, type, payload, headers and time intact', async (stage) => {
    const topic = await stage.topic()
    const publisher = await stage.publisher()
    const batch = [
      sampleMessage(topic, { key: 'a', type: 'order.placed', payload: everyByte }),
      sampleMessage(topic, { key: 'a', payload: Buffer.alloc(0), timeMs: 1_700_000_000_001 }),
      sampleMessage(topic, { key: 'b', payload: Buffer.alloc(100 * 1024, everyByte) }),
      sampleMessage(topic, { key: 'c', headers: { tenant: 'blå', note: '漢字 and 🚣', empty: '' } }),
    ]
    await stage.publish(publisher, batch)
    const reader = await stage.reader({ group: stage.context.group(), topics: [topic] })
    await reader.count(batch.length)
    assert.equal(reader.received.length, batch.length)
    for (const message of batch) assertIntact(reader, message)
  }),

  onStage('a group that was there before the messages gets them too', async (stage) => {
    const topic = await stage.topic()
    const reader = await stage.reader({ group: stage.context.group(), topics: [topic] })
    const publisher = await stage.publisher()
    const batch = keyedMessages(topic, sampleKeys(5), 50)
    await stage.publish(publisher, batch)
    await reader.count(50)
    assertComplete(reader, sampleKeys(5), 10)
  }),

  onStage('two groups each get every message', async (stage) => {
    const topic = await stage.topic()
    const publisher = await stage.publisher()
    await stage.publish(publisher, keyedMessages(topic, sampleKeys(5), 50))
    const readers = [
      await stage.reader({ group: stage.context.group(), topics: [topic] }),
      await stage.reader({ group: stage.context.group(), topics: [topic] }),
    ]
    for (const reader of readers) {
      await reader.count(50)
      assertComplete(reader, sampleKeys(5), 10)
    }
  }),

  onStage('a member that reads two topics gets each message under its own topic', async (stage) => {
    const topics = [await stage.topic(), await stage.topic()] as const
    const publisher = await stage.publisher()
    const batch = topics.flatMap((topic) => keyedMessages(topic, ['k'], 20))
    await stage.publish(publisher, batch)
    const reader = await stage.reader({ group: stage.context.group(), topics })
    await reader.count(batch.length)
    for (const message of batch) assertIntact(reader, message)
  }),

  onStage('messages of one key arrive in the order of many batches', async (stage) => {
    const topic = await stage.topic()
    const publisher = await stage.publisher()
    const reader = await stage.reader({ group: stage.context.group(), topics: [topic] })
    const keys = sampleKeys(3)
    for (let batch = 0; batch < 40; batch++) {
      await stage.publish(publisher, keyedMessages(topic, keys, keys.length * 5, batch * 5))
    }
    await reader.count(600)
    assertComplete(reader, keys, 200)
  }),

  onStage('messages without a key are delivered', async (stage) => {
    const topic = await stage.topic()
    const publisher = await stage.publisher()
    const batch = Array.from({ length: 100 }, () => sampleMessage(topic))
    await stage.publish(publisher, batch)
    const reader = await stage.reader({ group: stage.context.group(), topics: [topic] })
    await reader.count(100)
    assert.deepEqual(new Set(reader.received.map((m) => m.id)), new Set(batch.map((m) => m.id)))
    assert.ok(reader.received.every((message) => message.key === null))
  }),

  onStage('traceparent and tracestate arrive under their bare names', async (stage) => {
    const topic = await stage.topic()
    const publisher = await stage.publisher()
    const headers = {
      traceparent: '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01',
      tracestate: 'vendor=a1,other=b2',
    }
    await stage.publish(publisher, [sampleMessage(topic, { key: 'k', headers })])
    const reader = await stage.reader({ group: stage.context.group(), topics: [topic] })
    await reader.count(1)
    assert.deepEqual({ ...reader.received[0]?.headers }, headers)
  }),

  onStage(
    "a plain client sees the user's headers bare and Millrace's under its prefix",
    async (stage) => {
      const topic = await stage.topic()
      const publisher = await stage.publisher()
      const headers = { traceparent: '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01', tenant: 'acme' }
      const sent = sampleMessage(topic, { key: 'k', headers, payload: everyByte })
      await stage.publish(publisher, [sent])
      const reading = stage.context.plainReader?.(topic, 1) ?? Promise.resolve([])
      const [seen] = await stage.within(reading, 'the plain client')
      assert.ok(seen, 'the plain client found the message')
      assert.ok(seen.payload.equals(everyByte))
      assert.equal(seen.headers['traceparent'], headers.traceparent)
      assert.equal(seen.headers['tenant'], 'acme')
      assert.equal(seen.headers['millrace-id'], sent.id)
      assert.equal(seen.headers['millrace-type'], sent.type)
      assert.equal(seen.headers['millrace-seq'], sent.seq)
      assert.equal(seen.headers['millrace-time'], new Date(sent.timeMs).toISOString())
    },
    (_, context) => context.plainReader !== undefined,
  ),

  onStage('hostile keys and header values make the round trip', async (stage) => {
    const topic = await stage.topic()
    const publisher = await stage.publisher()
    const texts = [
      'with spaces  and more ',
      '100%25 %0a %zz %',
      'naïve-ключ-鍵-🔑',
      'a:b;c=d,"e"\\f/g?h#i&j+k',
      '.*>$ _INBOX.> {} [] ()',
      '__proto__',
      'constructor',
      'k'.repeat(10 * 1024),
      'ü'.repeat(1000),
    ]
    const batch = texts.map((text) => sampleMessage(topic, { key: text, headers: { hostile: text, plain: 'yes' } }))
    await stage.publish(publisher, batch)
    const reader = await stage.reader({ group: stage.context.group(), topics: [topic] })
    await reader.count(batch.length)
    for (const message of batch) assertIntact(reader, message)
  }),

  onStage('10,000 messages over 50 keys arrive complete and in the order of their key', async (stage) => {
    const topic = await stage.topic(6)
    const publisher = await stage.publisher()
    const reader = await stage.reader({ group: stage.context.group(), topics: [topic] })
    const keys = sampleKeys(50)
    await stage.publish(publisher, keyedMessages(topic, keys, 10_000))
    await reader.count(10_000)
    assert.equal(reader.received.length, 10_000)
    assertComplete(reader, keys, 200)
  }),
]
