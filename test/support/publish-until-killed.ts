/** Publishes to a served memory broker until the process is killed: `node publish-until-killed.ts URL TOPIC`. */
import { memory } from '../../src/brokers/memory/index.ts'
import { sampleMessage } from '../../src/testing/conformance/sample-message.ts'

const [url = '', topic = ''] = process.argv.slice(2)
const publisher = memory({ url }).publisher()
await publisher.start()
for (;;) await publisher.publish(Array.from({ length: 20 }, () => sampleMessage(topic, { key: 'k' })))
