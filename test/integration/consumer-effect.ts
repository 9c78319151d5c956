import type pg from 'pg'
import type { HandledMessage } from '../../src/consumer/index.ts'

/** A row that a handler wrote. */
export interface Effect {
  readonly id: string
  readonly key: string | null
  readonly n: number
}

/** The table that the handlers of these tests write to. Nothing in it is unique: a double effect is a second row. */
export const EFFECT_TABLE = 'create table effect (seq bigint generated always as identity, id text, key text, n int)'

/** Writes the effect of a message whose payload is `{ n }`. */
export async function writeEffect(message: HandledMessage, tx: Pick<pg.Pool, 'query'>): Promise<void> {
  const { n } = message.json<{ n?: number }>()
  await tx.query('insert into effect (id, key, n) values ($1, $2, $3)', [message.id, message.key, n ?? 0])
}

/** All effects, in the order they were written. */
export async function effects(pool: pg.Pool): Promise<Effect[]> {
  return (await pool.query<Effect>('select id, key, n from effect order by seq')).rows
}

/** `count` messages of keys `k0`, `k1`, …, each with its number within its key. */
export function numbered(count: number, keys: number, from = 0): { key: string; payload: string }[] {
  return Array.from({ length: count }, (_, i) => ({
    key: `k${i % keys}`,
    payload: JSON.stringify({ n: from + Math.floor(i / keys) }),
  }))
}

/** The numbers written for each key, in the order they were written. */
export function byKey(written: readonly Effect[]): Map<string | null, number[]> {
  const keys = new Map<string | null, number[]>()
  for (const { key, n } of written) {
    const numbers = keys.get(key)
    if (numbers === undefined) keys.set(key, [n])
    else numbers.push(n)
  }
  return keys
}

/** 0, 1, 2, … */
export function range(count: number): number[] {
  return Array.from({ length: count }, (_, i) => i)
}
