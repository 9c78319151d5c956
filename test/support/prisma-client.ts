/**
 * A Prisma client without models: the class that `prisma generate` writes for an empty schema, with the same configuration.
 */
import { PrismaPg } from '@prisma/adapter-pg'
import { type ITXClientDenyList, type PrismaPromise, getPrismaClient } from '@prisma/client/runtime/client'

/** Of the parts of a client that no types come with. */
const runtime = <T>(part: string): Promise<T> =>
  import(`@prisma/client/runtime/query_compiler_fast_bg.postgresql.${part}`) as Promise<T>

declare const WebAssembly: { readonly Module: new (bytes: Uint8Array) => object }

/** What a generated client declares, as far as raw statements need it. */
export interface PrismaClient {
  $connect(): Promise<void>
  $disconnect(): Promise<void>
  $queryRawUnsafe<T = unknown>(query: string, ...values: unknown[]): PrismaPromise<T>
  $transaction<R>(run: (tx: PrismaTransactionClient) => Promise<R>): Promise<R>
}

export type PrismaTransactionClient = Omit<PrismaClient, ITXClientDenyList>

export function prismaClient(connectionString: string): PrismaClient {
  const Client = getPrismaClient({
    activeProvider: 'postgresql',
    clientVersion: '7.10.0',
    compilerWasm: {
      getQueryCompilerWasmModule: async () => {
        const { wasm } = await runtime<{ wasm: string }>('wasm-base64.mjs')
        return new WebAssembly.Module(Buffer.from(wasm, 'base64'))
      },
      getRuntime: () => runtime('mjs'),
      importName: './query_compiler_fast_bg.js',
    },
    engineVersion: '',
    inlineSchema: 'datasource db {\n  provider = "postgresql"\n}\n',
    parameterizationSchema: { graph: 'AAAA', strings: [] },
    previewFeatures: [],
    runtimeDataModel: { enums: {}, models: {}, types: {} },
  } as never)
  return new Client({ adapter: new PrismaPg({ connectionString }) } as never) as unknown as PrismaClient
}
