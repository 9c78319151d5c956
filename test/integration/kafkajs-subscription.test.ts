import { Kafka } from 'kafkajs'
import { expect, test } from 'vitest'
import { kafkajs } from '../../src/brokers/kafka/kafkajs/index.ts'
import { memberCases, page } from './kafka-member-cases.ts'

memberCases('kafkajs', kafkajs, ({ join, publisher, topicOf }) => {
  test('an instrumentation that wrapped `run` is passed by', async () => {
    const topic = await topicOf(1)
    const { prototype } = Kafka
    const make = Object.getOwnPropertyDescriptor(prototype, 'consumer') as { value: Kafka['consumer'] }
    let wrapped = 0
    prototype.consumer = function (this: Kafka, ...args) {
      const consumer = make.value.apply(this, args)
      const original = consumer.run.bind(consumer)
      const run: typeof consumer.run = (config) => {
        wrapped++
        return original(config)
      }
      consumer.run = Object.assign(run, { __original: original })
      return consumer
    }
    try {
      const member = await join(topic)
      expect(await publisher().publish(page(topic, 1))).toEqual([])
      await member.until(() => member.received.length === 1)
      expect(wrapped).toBe(0)
    } finally {
      prototype.consumer = make.value
    }
  })
})
