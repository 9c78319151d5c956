import type { Msg } from '@nats-io/transport-node'
import { expect, test } from 'vitest'
import { BatchSender } from '../../src/brokers/nats/batch-sender.ts'
import { disconnected, noStream } from '../../src/brokers/nats/error-class.ts'
import { systemClock } from '../../src/core/clock.ts'
import { sampleMessage } from '../../src/testing/conformance/sample-message.ts'

const page = ['a', 'b', 'c'].map((key) => sampleMessage('t', { key }))

function play(publish: (at: number) => void = () => {}) {
  const sent: string[] = []
  const sender = new BatchSender({
    clock: systemClock,
    lost: ({ id, topic }, wasSent) => disconnected(id, topic, wasSent),
    noStream: (message) => noStream(message, 's', 0),
    publish: (_, commands, reply) => {
      publish(sent.length)
      sent.push(`${commands.replaceAll('\r\n', ' ').trim()}${reply === undefined ? '' : ' asks'}`)
    },
    refused: (_, verdict) => verdict,
    timeoutMs: 60_000,
  })
  const answered = sender.send(page, 'batch', 1, 'reply')
  const say = (text: string, code?: number): boolean =>
    sender.answer(1, { data: Buffer.from(text), headers: code === undefined ? undefined : { code } } as unknown as Msg)
  const outcome = async (): Promise<string> => {
    const answer = await answered
    if (typeof answer === 'string') return answer
    const { class: errorClass, outcome: what } = answer(page[0] as (typeof page)[number])
    return `${what} ${errorClass}`
  }
  return { outcome, say, sender, sent }
}

test('a batch is numbered, and asks for an answer at its beginning and at its commit', () => {
  const { sender, sent } = play()
  expect(sent).toEqual([
    'Nats-Batch-Id: batch Nats-Batch-Sequence: 1 asks',
    'Nats-Batch-Id: batch Nats-Batch-Sequence: 2',
    'Nats-Batch-Id: batch Nats-Batch-Sequence: 3 Nats-Batch-Commit: 1 asks',
  ])
  sender.abandon()
})

test('it is stored when the commit says how many messages it stored, and no sooner', async () => {
  const { outcome, say } = play()
  say('')
  say('{"stream":"s","seq":9,"batch":"batch","count":3}')
  expect(await outcome()).toBe('stored')
})

test.each(['{"stream":"s","seq":9,"batch":"batch","count":2}', '{"stream":"s","seq":9}'])(
  'it is learned one by one what became of it when the answer is not about the whole: %s',
  async (text) => {
    const { outcome, say } = play()
    say(text)
    expect(await outcome()).toBe('singly')
  },
)

test.each([
  ['a known id', 10201, 400, 'singly'],
  ['a batch that was given up', 10176, 400, 'singly'],
  ['too many batches', 10210, 429, 'failed throttle'],
  ['batches that are not allowed', 10174, 400, 'failed fatal'],
])('%s', async (_, errCode, code, expected) => {
  const { outcome, say } = play()
  say(JSON.stringify({ error: { code, err_code: errCode }, seq: 0, stream: 's' }))
  expect(await outcome()).toBe(expected)
})

test('when the connection goes after the commit was sent it is unknown, before that it failed', async () => {
  const lost = play()
  lost.sender.abandon()
  expect(await lost.outcome()).toBe('unknown retry')
  const closed = play((at) => {
    if (at === 2) throw new Error('closed')
  })
  expect(await closed.outcome()).toBe('failed retry')
})
