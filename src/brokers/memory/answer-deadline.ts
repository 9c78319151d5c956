import type { Clock } from '../../core/clock.ts'
import { MillraceError } from '../../core/errors.ts'
import type { OutgoingMessage } from '../../core/message.ts'
import type { Unresolved } from '../broker.ts'
import { everyOf } from './memory-broker.ts'

/** The answer, or `unknown` for the whole batch when it does not come in time or the caller gives up waiting. */
export function answerWithin(
  clock: Clock,
  answer: Promise<readonly Unresolved[]>,
  batch: readonly OutgoingMessage[],
  timeoutMs: number,
  signal: AbortSignal | undefined,
): Promise<readonly Unresolved[]> {
  return new Promise((resolve, reject) => {
    const settle = (unresolved: readonly Unresolved[]): void => {
      timer.clear()
      signal?.removeEventListener('abort', giveUp)
      resolve(unresolved)
    }
    const unknown = (why: string): void =>
      settle(everyOf(batch, 'unknown', 'retry', new MillraceError('CONNECTION_LOST', why)))
    const giveUp = (): void => unknown('the publish was aborted while its answer was awaited')
    const timer = clock.setTimer(() => unknown(`no answer within ${timeoutMs} ms`), timeoutMs)
    signal?.addEventListener('abort', giveUp, { once: true })
    answer.then(settle, (error: unknown) => {
      timer.clear()
      signal?.removeEventListener('abort', giveUp)
      reject(error as Error)
    })
  })
}
