/**
 * Keeps Node from printing warnings of this name; all others are printed as before.
 *
 * kafkajs 2 sets timers that are due already, which Node 24 tells about in the middle of a log.
 */
export function muteWarnings(name: string): void {
  const printers = process.listeners('warning')
  process.removeAllListeners('warning')
  process.on('warning', (warning) => {
    if (warning.name !== name) for (const print of printers) print(warning)
  })
}
