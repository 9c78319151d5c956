import { LOG_LEVELS } from '../daemon/daemon-logger.ts'
import { parseBrokerUrl } from '../daemon/broker-url.ts'
import { runRelayDaemon, SHUTDOWN_TIMEOUT_MS } from '../daemon/relay-daemon.ts'
import { defineCommand } from './command.ts'
import { databaseUrlFlag, outboxSchemaFlag } from './database-flags.ts'
import { choiceFlag, integerFlag, textFlag } from './flag.ts'

/** `millrace relay`: the daemon. */
export const relayCommand = defineCommand({
  name: 'relay',
  summary: 'Carries committed events from the outbox to a broker, until SIGTERM or SIGINT.',
  description: `Any number of them may run against one database. Those that poll share the shards of the outbox; of those
that stream the WAL one works, and the others stand by and take over when it ends. It writes JSON lines to standard output: the line with "state":"relaying" says that it is at work, the one with
"state":"standby" that another instance is. SIGTERM or SIGINT drains: it reads no more, settles what is in flight,
moves the checkpoint, releases the lease and exits 0. A second signal leaves at once; what was not settled is sent
again by the next instance.`,
  examples: [
    'millrace relay --database-url postgres://relay@db/shop --broker kafka://k1:9092,k2:9092',
    'MILLRACE_DATABASE_URL=postgres://relay@db/shop MILLRACE_BROKER=nats://nats:4222 millrace relay',
  ],
  flags: {
    broker: textFlag({
      environment: ['MILLRACE_BROKER'],
      parse: (text) => parseBrokerUrl(text).url,
      required: true,
      summary:
        'Where to: kafka://host:port,host:port (kafka+platformatic:// through that client), nats://host:port[?durability=fsync] or memory://127.0.0.1:port.',
      value: '<url>',
    }),
    capture: choiceFlag({
      byDefault: 'auto',
      choices: ['auto', 'polling', 'replication'],
      environment: ['MILLRACE_CAPTURE'],
      summary: 'How committed events are read: from the WAL (replication), the table (polling), or the best possible.',
    }),
    databaseUrl: databaseUrlFlag,
    leaseTtlMs: integerFlag({
      byDefault: '10000',
      environment: ['MILLRACE_LEASE_TTL_MS'],
      max: 3_600_000,
      min: 1000,
      summary: 'How long an instance that stands still or is cut off keeps its lease.',
      value: '<ms>',
    }),
    logLevel: choiceFlag({
      byDefault: 'info',
      choices: LOG_LEVELS,
      environment: ['MILLRACE_LOG_LEVEL'],
      summary: 'The least that is logged.',
    }),
    outboxSchema: outboxSchemaFlag,
    pageBytes: integerFlag({
      byDefault: '4194304',
      environment: ['MILLRACE_PAGE_BYTES'],
      max: 268_435_456,
      min: 1024,
      summary: 'The most bytes that one page of events may hold; memory is a few pages.',
      value: '<bytes>',
    }),
    pageSize: integerFlag({
      byDefault: '500',
      environment: ['MILLRACE_PAGE_SIZE'],
      max: 100_000,
      min: 1,
      summary: 'The most events that are read and published at once.',
      value: '<n>',
    }),
    pollIntervalMs: integerFlag({
      byDefault: '100',
      environment: ['MILLRACE_POLL_INTERVAL_MS'],
      max: 60_000,
      min: 1,
      summary: 'The longest wait between two looks at an idle outbox, when polling; latency against load.',
      value: '<ms>',
    }),
    publishTimeoutMs: integerFlag({
      byDefault: '10000',
      environment: ['MILLRACE_PUBLISH_TIMEOUT_MS'],
      max: 600_000,
      min: 100,
      summary: 'How long a publish may stay unanswered before it is sent again.',
      value: '<ms>',
    }),
    retentionMs: integerFlag({
      byDefault: '86400000',
      environment: ['MILLRACE_RETENTION_MS'],
      max: 97_200_000,
      min: 0,
      summary: 'How long published events stay in the outbox; 0 leaves reclaiming to another relay.',
      value: '<ms>',
    }),
    shutdownTimeoutMs: integerFlag({
      byDefault: String(SHUTDOWN_TIMEOUT_MS),
      environment: ['MILLRACE_SHUTDOWN_TIMEOUT_MS'],
      max: 3_600_000,
      min: 100,
      summary: 'How long a drain may take; keep it below the time your orchestrator waits before it kills.',
      value: '<ms>',
    }),
    slot: textFlag({
      environment: ['MILLRACE_SLOT'],
      parse: (text) => {
        if (!/^[a-z0-9_]{1,63}$/.test(text)) throw new RangeError('1 to 63 of a-z, 0-9 and _')
        return text
      },
      summary: 'The replication slot, when a policy wants a name of its own for it.',
      value: '<name>',
    }),
  },
  run: (flags, io) => runRelayDaemon({ ...flags, broker: flags.broker ?? '', password: io.environment['PGPASSWORD'] }),
})
