import { defineConfig } from 'vitest/config'

export default defineConfig({
  test: {
    globalSetup: ['test/setup/services.ts'],
    setupFiles: ['test/setup/leak-guard.ts'],
    include: ['test/{unit,integration,chaos,types,docs}/**/*.test.ts'],
    testTimeout: 60_000,
    hookTimeout: 120_000,
    pool: 'forks',
    maxWorkers: 4,
  },
})
