/**
 * The store of a replica: records by key, with each change in one transaction.
 *
 * A store does not know what the records mean, but for one thing: outbox entries and what else is
 * in the order of writing get their numbers here, since several tabs write at once.
 */

import { stop, type GregorError } from "../errors.js";

/** The kind of a record, and its name among those of its kind: `item/m1`, `device/`. */
export type RecordKey = `${string}/${string}`;

/** Records as decoded JSON, which nobody changes in place. One that cannot be read is undefined. */
export type Records = Map<RecordKey, unknown>;

/** Records to put; one that is null is removed. */
export type Changes = ReadonlyMap<RecordKey, unknown>;

/** A change as it was saved, and its number among all changes of the store: 1, 2, 3, … */
export interface SavedChange {
  readonly changes: Changes;
  readonly seq: number;
}

/** What decides in a transaction: it sees what is stored, and puts records; null removes one. If it
 * throws, it has put nothing. */
export type Decision<T> = (
  stored: ReadonlyMap<string, unknown>,
  put: (key: string, record: unknown) => void,
) => T;

/** Keeps records somewhere, in transactions. Only this has to be written for another place. */
export interface Database {
  /** Whether the records survive this tab, and other tabs see them. */
  readonly durable: boolean;

  /**
   * One transaction: reads the records with these keys (all, if undefined), and saves what `decide`
   * puts. Resolves with what that returns, when it is saved; as durably as can be if `isUrgent`.
   *
   * If it rejects, nothing has changed: with what `decide` threw; with the code `unavailable`, and
   * the caller may try again; or with `setup` if a newer version wrote the records. Only what was
   * not answered in time may have been saved all the same.
   */
  transact<T>(
    keys: readonly string[] | undefined,
    decide: Decision<T>,
    isUrgent?: boolean,
  ): Promise<T>;

  close(): void;
}

/** What is counted: changes, terms of leaders, and records in the order of writing. */
interface Counters {
  readonly seq: number;
  readonly term: number;
  readonly number: number;
  /** The number of the last wipe among the changes. */
  readonly wipe?: number;
}

/** Where the counters are, among the records. */
export const COUNTERS = "";
const OWNER = "owner/";

/** The counters in what is stored. */
export const countersIn = (stored: ReadonlyMap<string, unknown>): Counters =>
  (stored.get(COUNTERS) as Counters | undefined) ?? { seq: 0, term: 0, number: 0 };

/** Keeps the records of one user's device, for all tabs of a browser at once. Each promise may be
 * rejected as those of its database. */
export class Store {
  /** Whether the records survive this tab, and other tabs see them. */
  readonly durable: boolean;
  /** Called when another tab has wiped the records: from then on, this one saves nothing. */
  onWiped: (() => void) | undefined;
  /** The last wipe before this tab saw them first. */
  private _wipe: number | undefined;

  constructor(private readonly _database: Database) {
    this.durable = _database.durable;
  }

  /** Begins an empty store with the record of its owner, so that all tabs begin with the same. */
  begin(owner: object): Promise<void> {
    return this._transact([COUNTERS, OWNER], (stored, put) => {
      const { seq, wipe = 0 } = countersIn(stored);
      if (seq === wipe && !stored.get(OWNER)) put(OWNER, owner);
    });
  }

  /** All records, and the number of the last change that is in them. */
  load(): Promise<{ readonly records: Records; readonly seq: number }> {
    return this._transact(undefined, (stored) => ({ records: recordsIn(stored), seq: countersIn(stored).seq }));
  }

  /**
   * Saves a change, and resolves with it as it was saved. Messages in the outbox survive a power
   * cut from then on.
   *
   * A new record of the kinds `outbox`, `awaited` and `rejected` gets the next number, in the order
   * of the changes, and one that is stored keeps its own. With a `term`, it rejects with the code
   * `not-leader` if another term has begun; without one, with `erased` while the user is. What has
   * no term does not change who the owner is. An owner that is erased leaves no other record.
   */
  save(changes: Changes, term?: number): Promise<SavedChange> {
    const keys = numberedKeys(changes);
    const isErase = term !== undefined && isErased(changes);
    return this._transact(
      isErase ? undefined : [COUNTERS, OWNER, ...keys],
      (stored, put) => {
        const counters = countersIn(stored);
        let { number } = counters;
        if ((term ?? counters.term) !== counters.term) {
          throw stop("not-leader", "another tab leads now");
        }
        const gone = isErase ? [...recordsIn(stored).keys()] : [];
        const saved = new Map([...gone.map((key) => [key, null] as const), ...changes]);
        if (term === undefined && stored.get(OWNER)) {
          if (isErased(stored)) throw wiped();
          saved.delete(OWNER);
          saved.delete("device/");
        }
        for (const key of keys) {
          const own = numberOf(stored.get(key)) ?? ++number;
          const record = changes.get(key) as object | number;
          saved.set(key, typeof record === "number" ? own : { ...record, number: own });
        }
        const seq = counters.seq + 1;
        put(COUNTERS, { ...counters, seq, number });
        for (const [key, record] of saved) put(key, record);
        return { changes: saved, seq };
      },
      keys.length > 0,
    );
  }

  /** Begins the next term, which ends all others; `seq` is the last change before it. */
  newTerm(): Promise<{ readonly term: number; readonly seq: number }> {
    return this._transact([COUNTERS], (stored, put) => {
      const counters = inNextTerm(countersIn(stored));
      put(COUNTERS, counters);
      return counters;
    });
  }

  /** Removes all records, as one change, and resolves with them. It ends the term, and what any tab
   * saves from then on, until it opens the store again. */
  wipe(): Promise<Records> {
    return this._database.transact(undefined, (stored, put) => {
      const counters = inNextTerm(countersIn(stored));
      const seq = counters.seq + 1;
      const records = recordsIn(stored);
      this._wipe ??= counters.wipe ?? 0;
      for (const key of records.keys()) put(key, null);
      put(COUNTERS, { ...counters, seq, wipe: seq });
      return records;
    });
  }

  private _transact<T>(keys: readonly string[] | undefined, decide: Decision<T>, isUrgent?: boolean): Promise<T> {
    const decideHere: Decision<T> = (stored, put) => {
      const { wipe = 0 } = countersIn(stored);
      this._wipe ??= wipe;
      if (wipe === this._wipe) return decide(stored, put);
      this.onWiped?.();
      this.onWiped = undefined;
      throw wiped();
    };
    return this._database.transact(keys, decideHere, isUrgent);
  }

  close(): void {
    this._database.close();
  }
}

/** What is stored but for the counters. */
function recordsIn(stored: ReadonlyMap<string, unknown>): Records {
  const records = new Map(stored) as Records;
  (records as Map<string, unknown>).delete(COUNTERS);
  return records;
}

const wiped = (): GregorError => stop("erased", "another tab has wiped this device");

/** Whether these records say that the user was erased. */
const isErased = (records: ReadonlyMap<string, unknown>): boolean =>
  !!(records.get(OWNER) as { readonly erased?: boolean } | undefined)?.erased;

const inNextTerm = (counters: Counters): Counters => ({ ...counters, term: counters.term + 1 });

/** The keys of the records with numbers that a change puts. */
const numberedKeys = (changes: Changes): RecordKey[] =>
  [...changes.keys()].filter(
    (key) => changes.get(key) !== null && /^(outbox|awaited|rejected)\//.test(key),
  );

/** The number in a record that has one, or is nothing else. */
const numberOf = (record: unknown): number | undefined =>
  typeof record === "object" ? (record as { number: number }).number : (record as number | undefined);

/** The name of the store of a user's device: never that of another user or server. */
export const storeName = (server: string, user: string): string =>
  `gregor:${JSON.stringify([server, user])}`;
