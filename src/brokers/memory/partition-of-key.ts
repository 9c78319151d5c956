import { keyHash } from '../../core/key-hash.ts'

/** Most keys fit; a longer one gets a buffer of its own. */
const scratch = Buffer.allocUnsafe(3 * 512)

/** The partition that Kafka's Java client chooses for a key. */
export function partitionOfKey(key: string, partitions: number): number {
  const fits = key.length <= 512
  const bytes = fits ? scratch : Buffer.from(key)
  return keyHash(bytes, fits ? scratch.write(key) : bytes.length) % partitions
}
