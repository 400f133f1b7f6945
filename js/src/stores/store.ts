/**
 * The store of a replica: records by key, with each change in one transaction.
 *
 * A store does not know what the records mean, but for one thing: outbox entries and what else is
 * in the order of writing get their numbers here, since several tabs write at once.
 */

import { GregorError } from "../errors.js";

/** The kind of a record, and its name among those of its kind: `item/m1`, `device/`. */
export type RecordKey = `${string}/${string}`;

/** Records as decoded JSON, which nobody changes in place. */
export type Records = Map<RecordKey, unknown>;

/** Records to put; one that is null is removed. */
export type Changes = ReadonlyMap<RecordKey, unknown>;

/** A change as it was saved, and its place among all changes of this store: 1, 2, 3, … */
export interface SavedChange {
  readonly seq: number;
  readonly changes: Changes;
}

/** Keeps the records of one user's device, for all tabs of a browser at once. Every promise may
 * also be rejected with the code `unavailable`: nothing has changed then, and it can be tried
 * again; only after a time-out the change may have been saved all the same. */
export interface Store {
  /** Whether the records survive this tab, and other tabs see them. */
  readonly durable: boolean;

  /** Makes ready. Rejects with the code `setup` if a newer version wrote the records; it leaves
   * them as they are. */
  open(): Promise<void>;

  /** All records, and the last change that is in them. A record that cannot be read is undefined. */
  load(): Promise<{ readonly records: Records; readonly seq: number }>;

  /**
   * Saves a change in one transaction. When this resolves, the change is as durable as this store
   * can make it; messages in the outbox survive a power cut.
   *
   * A new record of the kinds `outbox`, `awaited` and `rejected` gets the next number, in the order
   * of the changes, and one that is stored keeps its own; the result has what was saved. With a
   * `term`, it rejects with the code `not-leader`, and changes nothing, if a later term has begun.
   */
  save(changes: Changes, term?: number): Promise<SavedChange>;

  /** Begins the next term, which ends all others, and says which change was the last before it. */
  newTerm(): Promise<{ readonly term: number; readonly seq: number }>;

  /** Removes all records, as one change, and ends the term. */
  wipe(): Promise<void>;

  close(): void;
}

/** What is counted in a store: changes, terms of leaders, and what is in the order of writing. */
export interface Counters {
  readonly seq: number;
  readonly term: number;
  readonly number: number;
}

export const NO_COUNTERS: Counters = { seq: 0, term: 0, number: 0 };

/** The name of the store of a user's device: never that of another user or server. */
export const storeName = (server: string, user: string): string =>
  `gregor:${JSON.stringify([server, user])}`;

/** A store that cannot do now what it was asked to. */
export const unavailable = (reason: string): GregorError =>
  new GregorError({ code: "unavailable", action: "retry", message: `not saved: ${reason}` });
