/**
 * The attribute names of OpenTelemetry's messaging conventions (1.44) that Millrace sets. They stand here because the
 * package that exports them moves them between its entries while they are in development.
 */
export const ATTRIBUTE = {
  batchMessageCount: 'messaging.batch.message_count',
  consumerGroup: 'messaging.consumer.group.name',
  destination: 'messaging.destination.name',
  errorType: 'error.type',
  kafkaKey: 'messaging.kafka.message.key',
  kafkaOffset: 'messaging.kafka.offset',
  messageId: 'messaging.message.id',
  messageSize: 'messaging.message.body.size',
  operationName: 'messaging.operation.name',
  operationType: 'messaging.operation.type',
  partition: 'messaging.destination.partition.id',
  system: 'messaging.system',
} as const

/** The instrumentation scope of every span. */
export const SCOPE = 'millrace'
