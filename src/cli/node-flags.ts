/**
 * How Node runs the daemon. V8 lets its young generation grow to three times 16 MiB, and as many bytes again of buffers
 * wait for its collections: a relay at full speed holds 190 MiB. At 8 MiB it holds 125 and is as fast.
 */
export const DAEMON_NODE_FLAGS: readonly string[] = ['--max-semi-space-size=8']

/**
 * Becomes the same command under the flags: the same process, its id and its standard streams, started anew
 * (`process.execve`). Returns where that is not possible (Windows), not needed, or would cut a channel to the parent;
 * and where somebody has chosen a size, on the command line or in NODE_OPTIONS.
 */
export function runUnder(flags: readonly string[], environment: NodeJS.ProcessEnv): void {
  const chosen = [...process.execArgv, environment['NODE_OPTIONS'] ?? ''].join(' ')
  const missing = flags.filter((flag) => !chosen.includes(flag.split('=')[0] as string))
  if (missing.length === 0 || process.execve === undefined || process.platform === 'win32' || process.connected) return
  const args = [process.argv0, ...process.execArgv, ...missing, ...process.argv.slice(1)]
  process.execve(process.execPath, args, environment as Record<string, string>)
}
