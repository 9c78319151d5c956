/** One node's place in its cluster. */
export interface KafkaNode {
  readonly controllerPort: number
  readonly data: string
  readonly port: number
  /** More properties; they win over the defaults. */
  readonly properties?: Readonly<Record<string, string>> | undefined
}

/**
 * One small, quick node: no wait before a group's first assignment, one partition for each of Kafka's own topics, no
 * cleaner (it takes 130 MiB), no metadata record twice a second. A node that was killed is let in again only when its old
 * session has expired: 9 s by default.
 */
export const KAFKA_DEFAULTS: Readonly<Record<string, string>> = {
  'auto.create.topics.enable': 'false',
  'background.threads': '2',
  'broker.heartbeat.interval.ms': '1000',
  'broker.session.timeout.ms': '3000',
  'controller.listener.names': 'CONTROLLER',
  'group.initial.rebalance.delay.ms': '0',
  'group.min.session.timeout.ms': '1000',
  'inter.broker.listener.name': 'PLAINTEXT',
  'log.cleaner.enable': 'false',
  'metadata.max.idle.interval.ms': '0',
  'node.id': '1',
  'num.io.threads': '2',
  'num.network.threads': '2',
  'offsets.topic.num.partitions': '1',
  'offsets.topic.replication.factor': '1',
  'process.roles': 'broker,controller',
  'share.coordinator.state.topic.min.isr': '1',
  'share.coordinator.state.topic.num.partitions': '1',
  'share.coordinator.state.topic.replication.factor': '1',
  'transaction.state.log.min.isr': '1',
  'transaction.state.log.num.partitions': '1',
  'transaction.state.log.replication.factor': '1',
}

/** The server.properties of a single node that is broker and controller. */
export function kafkaProperties(node: KafkaNode): string {
  const properties = {
    ...KAFKA_DEFAULTS,
    'controller.quorum.voters': `1@127.0.0.1:${node.controllerPort}`,
    listeners: `PLAINTEXT://127.0.0.1:${node.port},CONTROLLER://127.0.0.1:${node.controllerPort}`,
    'log.dirs': node.data,
    ...node.properties,
  }
  return Object.entries(properties)
    .map(([name, value]) => `${name}=${value}\n`)
    .join('')
}

/**
 * What a node of a cluster has otherwise: three replicas of which two must have a record, and a death that is noticed
 * within two seconds (Kafka's defaults are nine and more).
 */
export const KAFKA_CLUSTER_DEFAULTS: Readonly<Record<string, string>> = {
  'broker.heartbeat.interval.ms': '500',
  'broker.session.timeout.ms': '2000',
  'controller.quorum.append.linger.ms': '5',
  'controller.quorum.election.backoff.max.ms': '300',
  'controller.quorum.election.timeout.ms': '500',
  'controller.quorum.fetch.timeout.ms': '1000',
  'default.replication.factor': '3',
  'min.insync.replicas': '2',
  'offsets.topic.replication.factor': '3',
  'replica.lag.time.max.ms': '5000',
  'share.coordinator.state.topic.min.isr': '2',
  'share.coordinator.state.topic.replication.factor': '3',
  'transaction.state.log.min.isr': '2',
  'transaction.state.log.replication.factor': '3',
}
