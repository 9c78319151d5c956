import { platformatic } from '../../src/brokers/kafka/platformatic/index.ts'
import { limitsCases } from './kafka-limits-cases.ts'

limitsCases('platformatic', platformatic)
