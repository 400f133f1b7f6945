/** The database of a browser: one in IndexedDB for each user of a server, for all tabs. */

import { inTime, type Environment } from "../environment.js";
import { asError, stop, unavailable, type GregorError } from "../errors.js";
import { memoryDatabase } from "./memory.js";
import { COUNTERS, countersIn, Store, type Database, type Decision } from "./store.js";

const SCHEMA_VERSION = 1;
const RECORDS = "records";

/** Safari's databases may never answer, and a tab that is frozen may keep one from opening. */
const PATIENCE_MS = 10_000;

/** Hears that nothing more is kept from now on, and why. */
export type LossListener = (reason: GregorError) => void;

/** The store of this browser. Where it has none, or does not let us use it (as some do in private
 * windows), that is said to `onLost`, and the records live in memory. Rejects with the code `setup`
 * if a newer version wrote the records. */
export async function openStore(
  name: string,
  environment: Environment,
  onLost: LossListener,
): Promise<Store> {
  const database = indexedDatabase(name, environment, onLost);
  try {
    await database.transact([], () => {});
    return new Store(database);
  } catch (error) {
    if ((error as GregorError).code === "setup") throw error;
    onLost(error as GregorError);
    return new Store(memoryDatabase());
  }
}

/**
 * The database of this name. Its connection is closed after each failure, and the next transaction
 * opens another, since browsers break connections that they could restore.
 *
 * The database is lost for good when another tab deletes or upgrades it, and when records are gone
 * that it had: then `onLost` hears so, and each transaction is rejected.
 */
export function indexedDatabase(
  name: string,
  environment: Environment,
  onLost: LossListener,
): Database {
  let connection: Promise<IDBDatabase> | undefined;
  let loss: GregorError | undefined;
  let persistence: Promise<unknown> | undefined;
  let lastSeq = 0;

  const disconnect = () => {
    // One that opens after its time-out is closed as well.
    connection?.then(
      (database) => database.close(),
      () => {},
    );
    connection = undefined;
  };

  const lose = (reason: string) => {
    if (loss) return;
    loss = unavailable(reason);
    disconnect();
    onLost(loss);
  };

  const connect = async () => {
    const { indexedDB } = environment;
    if (!indexedDB) throw unavailable("no IndexedDB here");
    const request = indexedDB.open(name, SCHEMA_VERSION);
    request.onupgradeneeded = () => request.result.createObjectStore(RECORDS);
    const database = await answer(request).catch((error) => {
      if (error.name !== "VersionError") throw error;
      throw stop("setup", "a newer version wrote this store; reload the page");
    });
    database.onversionchange = () => lose("another tab deletes or upgrades the store");
    database.onclose = disconnect;
    return database;
  };

  const decideOn = async <T>(records: IDBObjectStore, keys: Keys, decide: Decision<T>) => {
    const stored = await read(records, keys);
    if (countersIn(stored).seq < lastSeq) lose("its records were removed");
    if (loss) throw loss;
    const result = decide(stored, (key, record) => {
      stored.set(key, record);
      if (record === null) records.delete(key);
      else records.put(record, key);
    });
    return { result, seq: countersIn(stored).seq };
  };

  return {
    durable: true,

    async transact(keys, decide, isUrgent) {
      let transaction: IDBTransaction | undefined;
      let isOver = false;
      const run = async () => {
        if (loss) throw loss;
        const durability = isUrgent ? "strict" : "default";
        const database = await (connection ??= connect());
        if (isOver) throw unavailable("too late"); // who wrote was told that nothing is saved
        transaction = database.transaction(RECORDS, "readwrite", { durability });
        const deciding = decideOn(transaction.objectStore(RECORDS), keys, decide);
        const [{ result, seq }] = await Promise.all([deciding, ended(transaction)]);
        lastSeq = seq;
        return result;
      };
      // The browser may say no. It is asked the first time that something waits to be sent.
      if (isUrgent) persistence ??= environment.storage?.persist?.().catch(() => {});
      try {
        return await inTime(environment, run(), PATIENCE_MS, "the store did not answer in time; close other tabs of this page");
      } catch (error) {
        isOver = true;
        abort(transaction);
        disconnect();
        throw loss ?? asError(error);
      }
    },

    close() {
      loss ??= unavailable("the store is closed");
      disconnect();
    },
  };
}

type Keys = readonly string[] | undefined;

/** The records with these keys, or all. One that the browser cannot read costs only itself; without
 * the counters, nothing is known. */
async function read(records: IDBObjectStore, keys: Keys): Promise<Map<string, unknown>> {
  const wanted = keys ?? ((await answer(records.getAllKeys())) as string[]);
  const all = keys ? undefined : await answer(records.getAll()).catch(() => undefined);
  const each = (key: string) =>
    answer(records.get(key)).catch((error) => {
      if (key === COUNTERS) throw error;
    });
  const values: unknown[] = all ?? (await Promise.all(wanted.map(each)));
  return new Map(wanted.map((key, index) => [key, values[index]]));
}

const answer = <T>(request: IDBRequest<T>): Promise<T> =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = (event) => {
      event.preventDefault(); // who asked decides whether the transaction goes on
      reject(request.error);
    };
  });

const ended = (transaction: IDBTransaction): Promise<void> =>
  new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve();
    transaction.onabort = () => reject(transaction.error ?? "stopped");
  });

function abort(transaction: IDBTransaction | undefined): void {
  try {
    transaction?.abort();
  } catch {
    // It has ended.
  }
}
