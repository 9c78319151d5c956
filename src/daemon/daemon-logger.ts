import { pino } from 'pino'
import type { Logger } from '../core/logger.ts'
import { errorFields } from './explain-error.ts'

/** How much to say. */
export const LOG_LEVELS = ['debug', 'info', 'warn', 'error', 'silent'] as const

/** One of {@link LOG_LEVELS}. */
export type LogLevel = (typeof LOG_LEVELS)[number]

/** Where log lines go; by default standard output. */
export interface LogDestination {
  write(line: string): void
}

/**
 * A logger of one JSON object a line, written at once, so that the last line before an exit is there. Errors are
 * written as name, code, message and causes. Every text in a line passes `redact`, whatever field a secret hides in.
 */
export function createDaemonLogger(
  level: LogLevel,
  redact: (text: string) => string,
  destination: LogDestination = standardOutput(),
): Logger {
  return pino(
    {
      base: { pid: process.pid },
      formatters: { level: (label) => ({ level: label }) },
      level,
      messageKey: 'message',
      serializers: { err: fieldsIfError, error: fieldsIfError },
      timestamp: pino.stdTimeFunctions.isoTime,
    },
    { write: (line) => destination.write(`${redactLine(line, redact)}\n`) },
  )
}

function fieldsIfError(value: unknown): unknown {
  return value instanceof Error ? errorFields(value) : value
}

/** Log lines are few, so a line is read again as what it is: as text, a secret made of digits would spoil a number. */
function redactLine(line: string, redact: (text: string) => string): string {
  const { level, time, ...fields } = JSON.parse(line) as Record<string, unknown>
  const shown: unknown = JSON.parse(JSON.stringify(fields), (_, value: unknown) =>
    typeof value === 'string' ? redact(value) : value,
  )
  return JSON.stringify({ level, time, ...(shown as object) })
}

function standardOutput(): LogDestination {
  const output = pino.destination({ dest: 1, sync: true })
  // Whoever read the log is gone: relaying goes on.
  output.on('error', () => undefined)
  return output
}
