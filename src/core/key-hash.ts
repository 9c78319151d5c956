/**
 * The hash by which Kafka's Java client gives a key to a partition, for whoever must choose as it does. Ours, because
 * kafkajs computes it in BigInt, which costs more than all else it does for a small message.
 */
const M = 0x5bd1e995
const SEED = 0x9747b28c

/** The 32-bit murmur2 of `Utils.murmur2`, over the first `length` bytes, as a signed integer. */
export function murmur2(bytes: Buffer, length: number = bytes.length): number {
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
  hash = Math.imul(hash ^ (hash >>> 13), M)
  return hash ^ (hash >>> 15)
}

/** What the Java client takes modulo the number of partitions: the key's hash without its sign. */
export function keyHash(bytes: Buffer, length?: number): number {
  return murmur2(bytes, length) & 0x7fffffff
}
