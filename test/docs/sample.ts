/** What the reader of documents is tested with. */
import { packageVersion } from '../../src/cli/run-cli.ts'
import { MillraceError } from '../../src/index.ts'
import { kafkajs } from '../../src/brokers/kafka/kafkajs/index.ts'

export function sample(): unknown {
  // #region inner
  return [packageVersion, MillraceError, kafkajs]
  // #endregion inner
}
