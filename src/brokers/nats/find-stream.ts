import type { JetStreamManager } from '@nats-io/jetstream'

const STREAM_NOT_FOUND = 10059

/** The stream that captures the subject, if there is one. */
export async function findStream(manager: JetStreamManager, subject: string): Promise<string | undefined> {
  try {
    return await manager.streams.find(subject)
  } catch (error) {
    if (codeOf(error) === STREAM_NOT_FOUND) return undefined
    throw error
  }
}

/** The server's numeric code in an error of nats.js, or 0. */
export function codeOf(error: unknown): number {
  const code = (error as { readonly code?: unknown } | null)?.code
  return typeof code === 'number' ? code : 0
}
