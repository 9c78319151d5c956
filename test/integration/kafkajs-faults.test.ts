import { kafkajs } from '../../src/brokers/kafka/kafkajs/index.ts'
import { faultsCases } from './kafka-faults-cases.ts'

faultsCases('kafkajs', kafkajs)
