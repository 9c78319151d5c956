import type { Headers, Message, OutgoingMessage } from '../../../core/message.ts'
import type { IncomingMessage, Partition } from '../../broker.ts'
import { ByteReader, ByteWriter } from './bytes.ts'
import { FRAME, protocolError } from './frame.ts'

/** A batch is cut into frames of about this size, and of no more messages than an answer about each has room for. */
const PUBLISH_BYTES = 1024 * 1024
const PUBLISH_MESSAGES = 1000

/** A message on its way to `onMessages`, with the number of the assignment it belongs to. */
export interface HandOver {
  readonly assignment: number
  readonly partition: Partition
  readonly messages: IncomingMessage[]
}

const writer = new ByteWriter()

/** A frame with the messages of the batch from `first` on, as many as fit, and the index after the last. */
export function publishFrame(
  requestId: number,
  batch: readonly OutgoingMessage[],
  first: number,
): { readonly frame: Buffer; readonly next: number } {
  writer.begin(FRAME.publish)
  writer.u32(requestId)
  let next = first
  while (next < batch.length) {
    const message = batch[next] as OutgoingMessage
    if (next > first && (next - first === PUBLISH_MESSAGES || writer.length + message.payload.length > PUBLISH_BYTES))
      break
    writeMessage(message)
    writer.text(message.seq)
    next++
  }
  return { frame: writer.finish(), next }
}

/** The request id and the messages of a publish frame. */
export function readPublish(body: Buffer): { readonly requestId: number; readonly batch: OutgoingMessage[] } {
  const reader = new ByteReader(body)
  const requestId = reader.u32()
  const batch: OutgoingMessage[] = []
  while (!reader.done) {
    const { payload, ...rest } = readMessage(reader)
    if (payload === null) throw protocolError('a message without a payload')
    batch.push({ ...rest, payload, seq: reader.text() })
  }
  return { requestId, batch }
}

/** A frame with one hand-over. */
export function handOverFrame(assignment: number, partition: Partition, messages: readonly IncomingMessage[]): Buffer {
  writer.begin(FRAME.handOver)
  writer.u32(assignment)
  writer.u32(partition.partition)
  writer.text(partition.topic)
  for (const message of messages) {
    writer.u64(message.position)
    writer.u8(message.redelivered ? 1 : 0)
    writer.u32(message.sizeBytes)
    writeMessage(message)
  }
  return writer.finish()
}

/** The hand-over of a frame. */
export function readHandOver(body: Buffer): HandOver {
  const reader = new ByteReader(body)
  const assignment = reader.u32()
  const number = reader.u32()
  const partition: Partition = { topic: reader.text(), partition: number }
  const messages: IncomingMessage[] = []
  while (!reader.done) {
    const position = reader.u64()
    const redelivered = reader.u8() === 1
    const sizeBytes = reader.u32()
    messages.push({ ...readMessage(reader), partition: number, position, redelivered, sizeBytes })
  }
  return { assignment, partition, messages }
}

function writeMessage(message: Message): void {
  writer.text(message.id)
  writer.text(message.topic)
  writer.text(message.key)
  writer.text(message.type)
  writer.f64(message.timeMs)
  writer.blob(message.payload)
  for (const name in message.headers) {
    writer.text(name)
    writer.text(message.headers[name] as string)
  }
  writer.text(null)
}

function readMessage(reader: ByteReader): Message {
  const id = reader.text()
  const topic = reader.text()
  const key = reader.optionalText()
  const type = reader.text()
  const timeMs = reader.f64()
  const payload = reader.blob()
  const headers = Object.create(null) as Record<string, string>
  for (let name = reader.optionalText(); name !== null; name = reader.optionalText()) headers[name] = reader.text()
  return { id, topic, key, type, timeMs, payload, headers: headers as Headers }
}
