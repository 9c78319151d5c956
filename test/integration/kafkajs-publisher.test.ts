import { kafkajs } from '../../src/brokers/kafka/kafkajs/index.ts'
import { publisherCases } from './kafka-publisher-cases.ts'

publisherCases('kafkajs', kafkajs)
