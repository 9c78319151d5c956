const OLDEST = [22, 22] as const

/** What to tell somebody whose Node is too old for Millrace; undefined when it is not. */
export function nodeTooOld(version: string = process.versions.node): string | undefined {
  const [major = 0, minor = 0] = version.split('.').map(Number)
  if (major > OLDEST[0] || (major === OLDEST[0] && minor >= OLDEST[1])) return undefined
  return `Millrace needs Node ${OLDEST.join('.')} or newer, and this is ${version}. Install a newer one: https://nodejs.org, or \`npm i -D node@24\` for this package alone.`
}
