/** A database that lives as long as its object: where nothing else is to be had, and in tests. */

import type { Database } from "./store.js";

/** Records in memory. Only a test says that they are durable: that its tabs share them. */
export function memoryDatabase(durable = false): Database {
  const records = new Map<string, unknown>();
  const put = (key: string, record: unknown) =>
    record === null ? records.delete(key) : records.set(key, record);
  return {
    durable,
    transact: async (_, decide) => decide(records, put),
    close() {},
  };
}
