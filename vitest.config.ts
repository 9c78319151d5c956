import { defineConfig } from 'vitest/config'

export default defineConfig({
  test: {
    globalSetup: ['test/setup/services.ts'],
    setupFiles: ['test/setup/leak-guard.ts'],
    include: ['test/{unit,integration,chaos,types,docs}/**/*.test.ts'],
    // Generous, for two busy cores: they end what hangs, and judge nobody's speed.
    testTimeout: 120_000,
    hookTimeout: 120_000,
    expect: { poll: { timeout: 20_000 } },
    pool: 'forks',
    maxWorkers: 4,
  },
})
