/**
 * The 32-bit murmur2 of Kafka's Java client (`Utils.murmur2`), as a signed integer. Ours because kafkajs computes it in
 * BigInt, which costs more than all else it does for a small message.
 */
export function murmur2(data: Uint8Array): number {
  const length = data.length
  let h = 0x9747b28c ^ length
  let i = 0
  for (; i + 4 <= length; i += 4) {
    let k = byte(data, i) | (byte(data, i + 1) << 8) | (byte(data, i + 2) << 16) | (byte(data, i + 3) << 24)
    k = Math.imul(k, M)
    k ^= k >>> 24
    h = Math.imul(h, M) ^ Math.imul(k, M)
  }
  const rest = length - i
  if (rest === 3) h ^= byte(data, i + 2) << 16
  if (rest >= 2) h ^= byte(data, i + 1) << 8
  if (rest >= 1) h = Math.imul(h ^ byte(data, i), M)
  h = Math.imul(h ^ (h >>> 13), M)
  return h ^ (h >>> 15)
}

/** What the Java client takes modulo the number of partitions: the key's hash without its sign. */
export function keyHash(key: Uint8Array): number {
  return murmur2(key) & 0x7fffffff
}

const M = 0x5bd1e995

function byte(data: Uint8Array, index: number): number {
  return data[index] as number
}
