const M = 0x5bd1e995
const SEED = 0x9747b28c

/** Most keys fit; a longer one gets a buffer of its own. */
const scratch = Buffer.allocUnsafe(3 * 512)

/** The 32-bit murmur2 of Kafka's Java client, as a signed integer. */
export function murmur2(bytes: Buffer, length = bytes.length): number {
  let hash = SEED ^ length
  const whole = length & ~3
  for (let i = 0; i < whole; i += 4) {
    let k = Math.imul(bytes.readInt32LE(i), M)
    k = Math.imul(k ^ (k >>> 24), M)
    hash = Math.imul(hash, M) ^ k
  }
  if (length > whole) {
    for (let i = length - 1; i >= whole; i--) hash ^= (bytes[i] as number) << (8 * (i - whole))
    hash = Math.imul(hash, M)
  }
  hash ^= hash >>> 13
  hash = Math.imul(hash, M)
  return hash ^ (hash >>> 15)
}

/** The partition that Kafka's Java client chooses for a key. */
export function partitionOfKey(key: string, partitions: number): number {
  const fits = key.length <= 512
  const bytes = fits ? scratch : Buffer.from(key)
  const length = fits ? scratch.write(key) : bytes.length
  return (murmur2(bytes, length) & 0x7fffffff) % partitions
}
