import { platformatic } from '../../src/brokers/kafka/platformatic/index.ts'
import { publisherCases } from './kafka-publisher-cases.ts'

publisherCases('platformatic', platformatic)
