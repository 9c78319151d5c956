import type { Row } from './row.ts'
import type { Stage } from './stage.ts'

/** Something that is measured, under the name that `--only` takes. */
export interface Measure {
  readonly name: string
  run(stage: Stage): Promise<readonly Row[]>
}
