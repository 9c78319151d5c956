/**
 * The inbox: the record that a message's effect happened, written in the transaction of the effect itself.
 *
 * `message-id.ts` says which row a message id is; `statements.ts` holds the SQL; `inbox.ts` runs it, and its head
 * comment says why an effect happens once.
 */
export { Inbox, type DeadLetter } from './inbox.ts'
export { inboxKey, UNTIMED_BUCKET, type InboxKey } from './message-id.ts'
