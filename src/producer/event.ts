/** What a service appends. */
export interface OutboxEvent<Type extends string = string, Payload = unknown> {
  /** A uuid, when the event's id comes from elsewhere. Default: a new uuid v7. The inbox deduplicates by it. */
  readonly id?: string
  /** Headers of your own. Names are HTTP tokens that do not begin with `millrace-`; values have no CR or LF. */
  readonly headers?: Readonly<Record<string, string>>
  /** What the event is ordered by, such as the id of the aggregate. Events without a key have no order. */
  readonly key?: string | null
  /** The event itself. A `Uint8Array` (a `Buffer`) goes as it is; anything else becomes JSON. */
  readonly payload: Payload
  /** The Kafka topic, the NATS subject. */
  readonly topic: string
  /** What happened, such as `order.placed`. */
  readonly type: Type
}

/** The events of an outbox by type, `{ 'order.placed': Order }`; each `append` is checked against it. */
export type EventOf<Events> = { [Type in keyof Events & string]: OutboxEvent<Type, Events[Type]> }[keyof Events &
  string]

/** The events of an outbox that has no catalog: any type, any payload. */
export type AnyEvents = Record<string, unknown>

/**
 * Any Standard Schema (version 1), by its shape: a schema of zod, valibot, arktype and others fits as it is.
 * See https://standardschema.dev.
 */
export interface StandardSchema<Input = unknown, Output = Input> {
  readonly '~standard': {
    readonly version: 1
    readonly vendor: string
    readonly validate: (value: unknown) => SchemaResult<Output> | Promise<SchemaResult<Output>>
    readonly types?: { readonly input: Input; readonly output: Output } | undefined
  }
}

/** What a schema says of a value: the value it makes of it, or its issues. */
export type SchemaResult<Output> =
  { readonly value: Output; readonly issues?: undefined } | { readonly issues: readonly SchemaIssue[] }

/** One thing a schema found wrong. */
export interface SchemaIssue {
  readonly message: string
  readonly path?: readonly (PropertyKey | { readonly key: PropertyKey })[] | undefined
}

/** Event types with the schemas of their payloads. */
export type EventCatalog = Readonly<Record<string, StandardSchema>>

/** What `append` takes for each type of a catalog. */
export type InputsOf<Catalog extends EventCatalog> = {
  [Type in keyof Catalog]: NonNullable<Catalog[Type]['~standard']['types']>['input']
}
