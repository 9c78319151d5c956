/**
 * `npx millrace relay` runs through a shell, and npx hands its signals to the shell alone, which ends and leaves the
 * daemon behind: with the lease, and unseen. So under npx the shell's end counts as the SIGTERM it had.
 */
export function endWithNpx(environment: NodeJS.ProcessEnv, everyMs = 200): void {
  if (environment['npm_command'] !== 'exec') return
  const shell = process.ppid
  const watch = setInterval(() => {
    if (process.ppid === shell) return
    clearInterval(watch)
    process.kill(process.pid, 'SIGTERM')
  }, everyMs)
  watch.unref()
}
