import { parseBrokerUrl } from '../../daemon/broker-url.ts'
import { EXIT_BY_SIGNAL, listenForStop, type StopSignal } from '../../daemon/stop-signals.ts'
import { defineCommand } from '../command.ts'
import { integerFlag, textFlag } from '../flag.ts'
import { runDemo } from './demo.ts'
import { createView } from './live-view.ts'

const ORDERS = 20_000
const TIMEOUT_MS = 120_000

/** `millrace demo`. */
export const demoCommand = defineCommand({
  name: 'demo',
  summary: 'Runs the whole channel on this machine while things break, and judges it by the tables.',
  description: `It starts a PostgreSQL 18 of its own with two databases. A shop commits orders with their events in
one of them, a relay (a process of its own) carries the events to the broker, and a billing service writes one invoice
for each order into the other. Meanwhile the relay is killed with SIGKILL three times, one message in fifty arrives
twice, and a tenth of the shop's transactions roll back. At the end the tables of both databases are compared: the exit
code is 0 when no order was lost, billed twice or billed out of order, and 1 otherwise. Ctrl-C ends everything; nothing
is left behind.`,
  examples: ['millrace demo', 'millrace demo --broker kafka://127.0.0.1:9092', 'millrace demo --orders 100000'],
  flags: {
    broker: textFlag({
      byDefault: 'a memory broker inside the demo, which the relay reaches over a local socket',
      environment: ['MILLRACE_BROKER'],
      parse: (text) => parseBrokerUrl(text).url,
      summary:
        'A real one: kafka://host:port,host:port, kafka+platformatic://host:port or nats://host:port. It gets a topic that is deleted at the end.',
      value: '<url>',
    }),
    orders: integerFlag({
      byDefault: String(ORDERS),
      environment: ['MILLRACE_ORDERS'],
      max: 500_000,
      min: 100,
      summary: 'How many orders the shop commits.',
      value: '<n>',
    }),
    timeoutMs: integerFlag({
      byDefault: String(TIMEOUT_MS),
      environment: ['MILLRACE_TIMEOUT_MS'],
      max: 3_600_000,
      min: 1000,
      summary: 'How long it all may take. Raise it with the number of orders, or on a slow machine.',
      value: '<ms>',
    }),
  },
  async run({ broker, orders = ORDERS, timeoutMs = TIMEOUT_MS }, io) {
    const signals = listenForStop()
    const view = createView({
      colour: process.stdout.isTTY && !io.environment['NO_COLOR'],
      columns: () => process.stdout.columns,
      live: process.stdout.isTTY && io.environment['TERM'] !== 'dumb',
      orders,
      out: (text) => io.out(text),
    })
    // Whoever read the output is gone, as in `millrace demo | head`: that ends it as a signal does.
    const unread = new Promise<StopSignal>((resolve) => process.stdout.on('error', () => resolve('SIGTERM')))
    const stop = Promise.race([signals.first, unread])
    const leftAtOnce = signals.second.then((signal) => EXIT_BY_SIGNAL[signal])
    try {
      // Left at once, the servers and the relay still end: each has somebody who notices that this process is gone.
      return await Promise.race([runDemo({ broker, orders, stop, timeoutMs, view }), leftAtOnce])
    } finally {
      signals[Symbol.dispose]()
    }
  },
})
