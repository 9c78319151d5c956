import { redactUrls } from '../../daemon/redact.ts'

/** The first lines: what happens, what is started, what breaks, where to look. */
export function introduction(orders: number, broker: string | undefined, topic: string): string {
  const carrier =
    broker === undefined
      ? 'a broker in memory, in this process, served to the relay over a local socket'
      : `no broker: it is ${redactUrls(broker)}, where the topic ${topic} is made, and deleted at the end`
  return `Millrace: ${orders} orders are committed in one database and billed in another, once each, while things break.

  starts   a PostgreSQL 18 in a temporary folder, with two databases: shop and billing
           ${carrier}
           \`millrace relay\` as a process of its own
  breaks   the relay, by kill -9, three times; one message in fifty arrives twice;
           a tenth of the shop's transactions roll back, and some commit long after they began
  look     src/cli/demo/shop.ts appends the events, billing.ts applies them, verdict.ts judges by SQL
           Ctrl-C ends everything; nothing is left behind
`
}
