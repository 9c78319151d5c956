import { randomUUID } from 'node:crypto'
import { afterAll, describe, it } from 'vitest'
import type { ConformanceContext } from '../../src/testing/conformance/index.ts'
import { conformanceCases } from '../../src/testing/conformance/index.ts'

/** A context and how to end what it runs on. Names are unique unless the context makes its own. */
export interface ConformanceTarget extends Omit<ConformanceContext, 'group' | 'topic'> {
  readonly group?: () => string
  readonly topic?: () => string
  dispose?(): Promise<void>
}

/** One `it` for each case that applies to the broker. `makeTarget` runs while tests are collected: it must be quick. */
export function runConformance(name: string, makeTarget: () => ConformanceTarget | Promise<ConformanceTarget>): void {
  describe(name, async () => {
    const target = await makeTarget()
    const context: ConformanceContext = {
      group: () => `group-${randomUUID()}`,
      topic: () => `topic-${randomUUID()}`,
      ...target,
    }
    afterAll(async () => await target.dispose?.())
    const probe = await context.broker()
    const { capabilities } = probe
    await probe.close()
    for (const guarantee of conformanceCases()) {
      if (guarantee.needs?.(capabilities, context) === false) continue
      it(guarantee.name, { timeout: 120_000 }, () => guarantee.run(context))
    }
  })
}
