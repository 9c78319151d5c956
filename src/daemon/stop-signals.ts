/** A signal that asks the process to end. */
export type StopSignal = 'SIGINT' | 'SIGTERM'

/** Exit codes of a process that was cut short by a signal: 128 and the signal's number. */
export const EXIT_BY_SIGNAL: Readonly<Record<StopSignal, number>> = Object.freeze({ SIGINT: 130, SIGTERM: 143 })

/** What the operator asked for so far. */
export interface StopSignals extends Disposable {
  /** Resolves with the first signal: drain. */
  readonly first: Promise<StopSignal>
  /** Resolves with the second: leave now. */
  readonly second: Promise<StopSignal>
}

/** Listens for SIGINT and SIGTERM until it is disposed. */
export function listenForStop(emitter: Pick<NodeJS.Process, 'on' | 'removeListener'> = process): StopSignals {
  const first = Promise.withResolvers<StopSignal>()
  const second = Promise.withResolvers<StopSignal>()
  let asked = false
  const listener = (signal: StopSignal): void => {
    if (asked) second.resolve(signal)
    asked = true
    first.resolve(signal)
  }
  emitter.on('SIGINT', listener)
  emitter.on('SIGTERM', listener)
  return {
    first: first.promise,
    second: second.promise,
    [Symbol.dispose]() {
      emitter.removeListener('SIGINT', listener)
      emitter.removeListener('SIGTERM', listener)
    },
  }
}
