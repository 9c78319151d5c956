import { kafkajs } from '../../src/brokers/kafka/kafkajs/index.ts'
import { brokerDeathCases } from './kafka-broker-death-cases.ts'

brokerDeathCases('kafkajs', kafkajs)
