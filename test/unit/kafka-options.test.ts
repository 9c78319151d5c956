import { describe, expect, test } from 'vitest'
import { loadKafkajs } from '../../src/brokers/kafka/kafkajs/connections.ts'
import { kafkajs } from '../../src/brokers/kafka/kafkajs/index.ts'
import type { KafkajsOptions } from '../../src/brokers/kafka/kafkajs/index.ts'
import { settingsOf } from '../../src/brokers/kafka/kafkajs/options.ts'

describe('kafkajs()', () => {
  test('takes brokers as a list or separated by commas', () => {
    expect(settingsOf({ brokers: 'a:1, b:2' }).brokers).toEqual(['a:1', 'b:2'])
    expect(settingsOf({ brokers: ['a:1', 'b:2'] }).brokers).toEqual(['a:1', 'b:2'])
  })

  test('tells all that is wrong at once', () => {
    const options = { brokers: ['nowhere'], client: 'x', maxMessageBytes: 1, ssl: 'yes' } as unknown as KafkajsOptions
    expect(() => kafkajs(options)).toThrow(
      expect.objectContaining({
        code: 'CONFIG_INVALID',
        message: expect.stringMatching(/brokers[\s\S]*maxMessageBytes/) as string,
      }) as Error,
    )
    for (const brokers of [[], '', 'a:1,', 'http://a:1', 'a']) {
      expect(() => kafkajs({ brokers }), String(brokers)).toThrow(/brokers/)
    }
    expect(() => kafkajs(undefined as never)).toThrow(/brokers/)
  })

  test('connects to nothing, and closes without ever having connected', async () => {
    const broker = kafkajs({ brokers: '127.0.0.1:1' })
    expect(broker.system).toBe('kafka')
    const publisher = broker.publisher()
    await publisher.close()
    await broker.close()
  })

  test('says how to install kafkajs when it is missing', async () => {
    const missing = Object.assign(new Error('not found'), { code: 'ERR_MODULE_NOT_FOUND' })
    await expect(loadKafkajs(() => Promise.reject(missing))).rejects.toMatchObject({
      code: 'PEER_MISSING',
      message: expect.stringContaining('npm i kafkajs') as string,
    })
    await expect(loadKafkajs(() => Promise.reject(new Error('broken')))).rejects.toThrow('broken')
  })
})
