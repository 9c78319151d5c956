/** JetStream: as the documentation of nats.js has it, and the least that a publisher can do. */
import { jetstream } from '@nats-io/jetstream'
import { connect, createInbox, headers } from '@nats-io/transport-node'
import { writeHeaders } from '../../src/core/wire.ts'
import { type PublishingWay, event } from './way.ts'

const IN_FLIGHT = 256

/** `js.publish` with 256 promises pending, the adapter's headers and an id to deduplicate by. */
export async function jsPublish(servers: string, topic: string, keys: number): Promise<PublishingWay> {
  const nc = await connect({ servers })
  const js = jetstream(nc)
  return {
    async publish(count) {
      let next = 0
      const worker = async (): Promise<void> => {
        while (next < count) {
          const message = event(topic, next++, keys)
          const carried = headers()
          writeHeaders(message, (name, value) => carried.set(name, value))
          await js.publish(topic, message.payload, { headers: carried, msgID: message.id })
        }
      }
      await Promise.all(Array.from({ length: IN_FLIGHT }, worker))
    },
    close: () => nc.close(),
  }
}

const WINDOW = 1024

/** Bytes out and answers counted, 1024 in flight: no order of keys, no classes of errors, no deadlines. */
export async function rawInbox(servers: string, topic: string, keys: number): Promise<PublishingWay> {
  const nc = await connect({ servers })
  const inbox = `${createInbox()}.`
  let bytes: Uint8Array = Buffer.alloc(0)
  const carrier = Object.assign(headers(), { encode: () => bytes })
  let acknowledged: () => void = () => {}
  nc.subscribe(`${inbox}*`, { callback: () => acknowledged() })
  return {
    publish(count) {
      return new Promise((resolve) => {
        let sent = 0
        let left = count
        const pump = (): void => {
          for (; sent < count && sent - (count - left) < WINDOW; sent++) {
            const message = event(topic, sent, keys)
            let text = 'NATS/1.0\r\n'
            writeHeaders(message, (name, value) => (text += `${name}: ${value}\r\n`))
            bytes = Buffer.from(`${text}Nats-Msg-Id: ${message.id}\r\n\r\n`)
            nc.publish(topic, message.payload, { headers: carrier, reply: inbox + sent })
          }
        }
        acknowledged = () => {
          if (--left === 0) return resolve()
          // Half a window at a time, so that writes are large.
          if (sent - (count - left) <= WINDOW / 2) pump()
        }
        pump()
      })
    },
    close: () => nc.close(),
  }
}
