import type pg from 'pg'

/**
 * Ends the walsender and drops the slot, if there is one, as an operator would who wants its WAL gone. Tried again until
 * it is done, because a relay is soon back at its slot.
 */
export async function dropSlot(pool: pg.Pool, slot: string): Promise<void> {
  for (;;) {
    await pool.query('select pg_terminate_backend(active_pid) from pg_replication_slots where slot_name = $1', [slot])
    try {
      await pool.query('select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = $1', [
        slot,
      ])
      return
    } catch (error) {
      if ((error as { code?: string }).code !== IN_USE) throw error
    }
  }
}

const IN_USE = '55006'
