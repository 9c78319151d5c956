/**
 * A header value of NATS is one line of UTF-8, and readers trim it. What would not survive is percent-encoded: CR, LF,
 * NUL, white space at either end, and then `%` itself.
 *
 * - The key may be anything, so `millrace-key` is always read as percent-encoded, and a `%` in a key always encoded.
 *   Every other key travels as it is, and a plain client reads it.
 * - Other values travel as they are, `%` included. The rare one that would not survive is encoded, and its name listed
 *   in {@link ENCODED}, so that it is read back exactly.
 */
const UNSAFE = /[\r\n\0%]|^\s+|\s+$/g
const ANY_UNSAFE_IN_KEY = /[\r\n\0%]|^\s|\s$/
const SPACE = 0x20
const TILDE = 0x7e
const ANY_UNSAFE = /[\r\n\0]|^\s|\s$/

/** Names, separated by spaces, of the headers of this message whose values are percent-encoded. Absent when none is. */
export const ENCODED = 'millrace-encoded'

/** A key as a header value. */
export function encodeKey(key: string): string {
  return ANY_UNSAFE_IN_KEY.test(key) ? encodeText(key) : key
}

/** Whether a value other than the key must be encoded. */
export function mustEncode(value: string): boolean {
  return !isPlain(value) && ANY_UNSAFE.test(value)
}

/** Printable ASCII, no space at either end: nearly every value, and told sooner than by an expression. */
function isPlain(value: string): boolean {
  const last = value.length - 1
  for (let at = 0; at <= last; at++) {
    const code = value.charCodeAt(at)
    if (code < SPACE || code > TILDE || (code === SPACE && (at === 0 || at === last))) return false
  }
  return true
}

/** Percent-encodes what a header value cannot carry. */
export function encodeText(text: string): string {
  return text.replaceAll(UNSAFE, encodeURIComponent)
}

/** The text in an encoded value; one that is not well encoded, which a foreign producer may send, is taken as it is. */
export function decodeText(value: string): string {
  if (!value.includes('%')) return value
  try {
    return decodeURIComponent(value)
  } catch {
    return value
  }
}
