/** Puts the migrations beside the compiled code, where the migrator looks for them: dist/drizzle/migrations. */
import { cp, rm } from 'node:fs/promises'

const from = new URL('../drizzle/migrations/', import.meta.url)
const to = new URL('../dist/drizzle/migrations/', import.meta.url)

await rm(to, { recursive: true, force: true })
await cp(from, to, { recursive: true })
