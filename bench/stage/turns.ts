/** Runs the ways in turns, so that a noisy minute falls on all, and in changing order. */
export async function inTurns<K extends string, T>(
  rounds: number,
  ways: { readonly [way in K]: () => Promise<T> },
): Promise<{ readonly [way in K]: readonly T[] }> {
  const names = Object.keys(ways) as K[]
  const results = Object.fromEntries(names.map((name) => [name, [] as T[]])) as { [way in K]: T[] }
  for (let round = 0; round < rounds; round++) {
    for (const name of round % 2 === 0 ? names : names.toReversed()) results[name].push(await ways[name]())
  }
  return results
}

/** The one in the middle, by a figure of it. */
export function median<T>(list: readonly T[], figure: (one: T) => number): T {
  const sorted = list.toSorted((a, b) => figure(a) - figure(b))
  return sorted[sorted.length >> 1] as T
}

/** The middle of the figures themselves. */
export function medianOf<T>(list: readonly T[], figure: (one: T) => number): number {
  return figure(median(list, figure))
}
