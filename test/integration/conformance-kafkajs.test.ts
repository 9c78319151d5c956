import { kafkajs } from '../../src/brokers/kafka/kafkajs/index.ts'
import { runConformance } from '../support/conformance.ts'
import { describeWith, services } from '../support/services.ts'
import { plainReader } from './kafka-plain-reader.ts'

describeWith('kafka', 'conformance', () => {
  runConformance('kafkajs', () => {
    const brokers = (services().kafka as string).split(',')
    return {
      deadlineMs: 60_000,
      broker: () => Promise.resolve(kafkajs({ brokers })),
      plainReader: (topic, count) => plainReader(brokers, topic, count),
    }
  })
})
