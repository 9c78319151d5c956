/** What stands where a secret stood. */
const HIDDEN = '***'

/**
 * Hides the secrets in every URL of a text: `scheme://user:password@host` keeps the user, `scheme://token@host` keeps
 * nothing, and parameters named like a password or a token lose their value. It works on text, because what has to be
 * shown is often a URL that does not parse; when in doubt it hides too much.
 */
export function redactUrls(text: string): string {
  return text
    .replaceAll(/(:\/\/[^\s:@/?#]*):[^\s]*@/g, `$1:${HIDDEN}@`)
    .replaceAll(/:\/\/(?![^\s:@/?#]*:)[^\s@/?#]+@/g, (match, offset: number) =>
      /postgres(?:ql)?$/.test(text.slice(0, offset)) ? match : `://${HIDDEN}@`,
    )
    .replaceAll(/((?:password|passwd|token|secret|passphrase)=)[^\s&;]+/gi, `$1${HIDDEN}`)
}

/** Makes a function that hides, besides what {@link redactUrls} does, these secrets wherever they stand in a text. */
export function createRedactor(secrets: readonly (string | undefined)[]): (text: string) => string {
  const literals = new Set<string>()
  for (const secret of secrets) {
    if (secret === undefined || secret === '') continue
    literals.add(secret)
    literals.add(encodeURIComponent(secret))
  }
  const byLength = [...literals].toSorted((a, b) => b.length - a.length)
  return (text) => byLength.reduce((shown, literal) => shown.replaceAll(literal, HIDDEN), redactUrls(text))
}

/** The passwords and tokens inside a URL, decoded, for {@link createRedactor}. */
export function secretsOf(url: string | undefined): readonly string[] {
  const userinfo = url === undefined ? undefined : /:\/\/([^\s]*)@/.exec(url)?.[1]
  if (userinfo === undefined) return []
  const colon = userinfo.indexOf(':')
  const secret = colon < 0 ? (url?.startsWith('postgres') ? '' : userinfo) : userinfo.slice(colon + 1)
  const decoded = decode(secret)
  return [secret, decoded].filter((text) => text !== '')
}

function decode(text: string): string {
  try {
    return decodeURIComponent(text)
  } catch {
    return text
  }
}
