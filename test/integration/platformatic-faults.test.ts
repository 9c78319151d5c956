import { platformatic } from '../../src/brokers/kafka/platformatic/index.ts'
import { faultsCases } from './kafka-faults-cases.ts'

faultsCases('platformatic', platformatic)
