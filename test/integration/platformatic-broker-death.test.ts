import { platformatic } from '../../src/brokers/kafka/platformatic/index.ts'
import { brokerDeathCases } from './kafka-broker-death-cases.ts'

brokerDeathCases('platformatic', platformatic)
