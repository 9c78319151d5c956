import { kafkajs } from '../../src/brokers/kafka/kafkajs/index.ts'
import { limitsCases } from './kafka-limits-cases.ts'

limitsCases('kafkajs', kafkajs)
