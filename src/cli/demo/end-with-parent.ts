/**
 * Loaded into the relay's process before its own program. Its standard input is a pipe on which nobody writes: when it
 * closes, the demo is gone, by whatever means, and the relay has to go too.
 */
function leave(): void {
  process.kill(process.pid, 'SIGKILL')
}

process.stdin.on('end', leave).on('error', leave).resume()
