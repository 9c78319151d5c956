import { createHash } from 'node:crypto'

/**
 * A topic is a subject without wildcards: tokens of anything but white space, split by dots. NATS would take `*` and
 * `>` in a publish and store them, where no reader finds them; and what begins with `$` belongs to the server.
 */
export function isSubject(topic: string): boolean {
  return topic.length > 0 && topic.length <= 1024 && /^(?!\$)[^\s.*>\0]+(?:\.[^\s.*>\0]+)*$/.test(topic)
}

/** The stream that `admin.createTopic` makes: the topic itself where a stream may be named so. */
export function streamName(topic: string): string {
  return /^[A-Za-z0-9_-]{1,128}$/.test(topic) ? topic : `${tidy(topic)}-${digest(topic)}`
}

/** The durable consumer of a group on a topic. Several topics may share a stream, so both are in it. */
export function durableName(group: string, topic: string): string {
  return `${tidy(group)}-${tidy(topic)}-${digest(`${group}\0${topic}`)}`
}

/** What may stand in the names of streams and consumers, which become parts of subjects and of file names. */
function tidy(name: string): string {
  return name.replaceAll(/[^A-Za-z0-9_-]+/g, '_').slice(0, 48)
}

/** Keeps apart what `tidy` makes the same. */
function digest(name: string): string {
  return createHash('sha256').update(name).digest('hex').slice(0, 10)
}
