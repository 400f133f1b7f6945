/**
 * The conformance cases of stores, as data, and what runs them anywhere: on memory, on a fake of
 * IndexedDB, and in a browser. It needs no test library.
 */

import type { GregorError } from "../../src/errors.js";
import type { Changes, RecordKey, Store } from "../../src/stores/store.js";

type Json = Readonly<Record<string, unknown>>;

/** What a tab does with its store, and what has to come of it. `tab` is 0 if it is not stated; each
 * tab has its own store object on the same records. */
export type Step = { readonly tab?: number } & (
  | { readonly save: Json; readonly term?: number; readonly gives: { readonly seq: number; readonly changes: Json } }
  | { readonly save: Json; readonly term?: number; readonly refused: string }
  | { readonly load: true; readonly gives: { readonly seq: number; readonly records: Json } }
  | { readonly newTerm: true; readonly gives: { readonly term: number; readonly seq: number } }
  | { readonly wipe: true; readonly gives: Json }
  | { readonly reopen: true }
);

export interface StoreCase {
  readonly name: string;
  readonly steps: readonly Step[];
}

const item = { msg_id: "m1", ctime: 5, category: "news", body: { text: "hello" } };
const entry = (number: number) => ({ number, written: 7, message: { uid: "u", msg_id: "m" } });
const erased = { erased: true };
const alive = { erased: false };
const empty = { seq: 0, records: {} };

export const STORE_CASES: readonly StoreCase[] = [
  { name: "a new store is empty", steps: [{ load: true, gives: empty }] },
  {
    name: "what is saved is loaded, by this tab and by others",
    steps: [
      { save: { "item/m1": item }, gives: { seq: 1, changes: { "item/m1": item } } },
      { load: true, gives: { seq: 1, records: { "item/m1": item } } },
      { tab: 1, load: true, gives: { seq: 1, records: { "item/m1": item } } },
    ],
  },
  {
    name: "what is saved survives a restart",
    steps: [
      { save: { "outbox/a": entry(1) }, gives: { seq: 1, changes: { "outbox/a": entry(1) } } },
      { newTerm: true, gives: { term: 1, seq: 1 } },
      { reopen: true },
      { load: true, gives: { seq: 1, records: { "outbox/a": entry(1) } } },
      { save: { "outbox/b": entry(1) }, gives: { seq: 2, changes: { "outbox/b": entry(2) } } },
      { newTerm: true, gives: { term: 2, seq: 2 } },
    ],
  },
  {
    name: "null removes a record, also one that is not there",
    steps: [
      { save: { "item/a": 1, "item/b": 2 }, gives: { seq: 1, changes: { "item/a": 1, "item/b": 2 } } },
      { save: { "item/a": null, "item/c": null }, gives: { seq: 2, changes: { "item/a": null, "item/c": null } } },
      { load: true, gives: { seq: 2, records: { "item/b": 2 } } },
    ],
  },
  {
    name: "a record replaces the one with its key",
    steps: [
      { save: { "device/": { cursor: 1 } }, gives: { seq: 1, changes: { "device/": { cursor: 1 } } } },
      { tab: 1, save: { "device/": { cursor: 2 } }, gives: { seq: 2, changes: { "device/": { cursor: 2 } } } },
      { load: true, gives: { seq: 2, records: { "device/": { cursor: 2 } } } },
    ],
  },
  {
    name: "an empty change is counted as well",
    steps: [
      { save: {}, gives: { seq: 1, changes: {} } },
      { load: true, gives: { seq: 1, records: {} } },
    ],
  },
  {
    name: "keys and values are any JSON",
    steps: [
      {
        save: { "hidden/__proto__": true, "item/ünï/cø dé 🎈": [null, "", 0, -1.5, 2 ** 53 - 1, { "": [] }], "item/\ud800": "\ud800" },
        gives: {
          seq: 1,
          changes: { "hidden/__proto__": true, "item/ünï/cø dé 🎈": [null, "", 0, -1.5, 2 ** 53 - 1, { "": [] }], "item/\ud800": "\ud800" },
        },
      },
      {
        tab: 1,
        load: true,
        gives: {
          seq: 1,
          records: { "hidden/__proto__": true, "item/ünï/cø dé 🎈": [null, "", 0, -1.5, 2 ** 53 - 1, { "": [] }], "item/\ud800": "\ud800" },
        },
      },
    ],
  },
  {
    name: "two tabs that write at once get different numbers, each in its order",
    steps: [
      { save: { "outbox/a": entry(1), "outbox/b": entry(2) }, gives: { seq: 1, changes: { "outbox/a": entry(1), "outbox/b": entry(2) } } },
      { tab: 1, save: { "outbox/c": entry(1), "awaited/x": 2, "outbox/d": entry(3) }, gives: { seq: 2, changes: { "outbox/c": entry(3), "awaited/x": 4, "outbox/d": entry(5) } } },
      { save: { "rejected/a": entry(3), "outbox/a": null }, gives: { seq: 3, changes: { "rejected/a": entry(6), "outbox/a": null } } },
    ],
  },
  {
    name: "a record that changes keeps its number",
    steps: [
      { save: { "outbox/a": entry(1), "awaited/x": 2 }, gives: { seq: 1, changes: { "outbox/a": entry(1), "awaited/x": 2 } } },
      { tab: 1, save: { "outbox/a": { ...entry(9), echoed: true }, "awaited/x": 9, "outbox/b": entry(9) }, gives: { seq: 2, changes: { "outbox/a": { ...entry(1), echoed: true }, "awaited/x": 2, "outbox/b": entry(3) } } },
    ],
  },
  {
    name: "no number is given twice, also after its record has gone",
    steps: [
      { save: { "outbox/a": entry(1) }, gives: { seq: 1, changes: { "outbox/a": entry(1) } } },
      { save: { "outbox/a": null }, gives: { seq: 2, changes: { "outbox/a": null } } },
      { save: { "outbox/b": entry(1) }, gives: { seq: 3, changes: { "outbox/b": entry(2) } } },
    ],
  },
  {
    name: "records of other kinds keep what they call a number",
    steps: [
      { save: { "set_aside/outbox/a": entry(7), "item/m1": { number: 8 } }, gives: { seq: 1, changes: { "set_aside/outbox/a": entry(7), "item/m1": { number: 8 } } } },
    ],
  },
  {
    name: "a new term ends the one before it",
    steps: [
      { newTerm: true, gives: { term: 1, seq: 0 } },
      { save: { "item/a": 1 }, term: 1, gives: { seq: 1, changes: { "item/a": 1 } } },
      { tab: 1, newTerm: true, gives: { term: 2, seq: 1 } },
      { save: { "item/b": 1, "outbox/b": entry(1) }, term: 1, refused: "not-leader" },
      { tab: 1, save: { "item/c": 1 }, term: 2, gives: { seq: 2, changes: { "item/c": 1 } } },
      { load: true, gives: { seq: 2, records: { "item/a": 1, "item/c": 1 } } },
    ],
  },
  {
    name: "without a term, any tab may write",
    steps: [
      { newTerm: true, gives: { term: 1, seq: 0 } },
      { tab: 1, save: { "outbox/a": entry(1) }, gives: { seq: 1, changes: { "outbox/a": entry(1) } } },
    ],
  },
  {
    name: "a wipe leaves nothing, counts as a change, and ends the store for all who had it open",
    steps: [
      { newTerm: true, gives: { term: 1, seq: 0 } },
      { save: { "item/a": 1, "outbox/a": entry(1) }, term: 1, gives: { seq: 1, changes: { "item/a": 1, "outbox/a": entry(1) } } },
      { tab: 1, wipe: true, gives: { "item/a": 1, "outbox/a": entry(1) } },
      { save: { "item/b": 1 }, term: 1, refused: "erased" },
      { save: { "outbox/b": entry(1) }, refused: "erased" },
      { tab: 1, save: { "outbox/b": entry(1) }, refused: "erased" },
      { reopen: true },
      { load: true, gives: { seq: 2, records: {} } },
      { save: { "item/b": 1 }, term: 1, refused: "not-leader" },
      { save: { "outbox/b": entry(1) }, gives: { seq: 3, changes: { "outbox/b": entry(2) } } },
    ],
  },
  {
    name: "an owner that is erased leaves nothing else, and takes no writes until there is a new life",
    steps: [
      { newTerm: true, gives: { term: 1, seq: 0 } },
      { save: { "owner/": alive, "item/a": 1 }, term: 1, gives: { seq: 1, changes: { "owner/": alive, "item/a": 1 } } },
      { tab: 1, save: { "outbox/a": entry(1) }, gives: { seq: 2, changes: { "outbox/a": entry(1) } } },
      { save: { "owner/": erased, "item/a": null }, term: 1, gives: { seq: 3, changes: { "owner/": erased, "item/a": null, "outbox/a": null } } },
      { tab: 1, save: { "outbox/b": entry(1) }, refused: "erased" },
      { tab: 1, load: true, gives: { seq: 3, records: { "owner/": erased } } },
      { save: { "owner/": alive, "item/b": 1 }, term: 1, gives: { seq: 4, changes: { "owner/": alive, "item/b": 1 } } },
      { tab: 1, save: { "outbox/b": entry(1), "owner/": erased }, gives: { seq: 5, changes: { "outbox/b": entry(2) } } },
    ],
  },
];

/** Runs a case on stores that `open` makes, all on the same records. Throws what is wrong. */
export async function runStoreCase({ steps }: StoreCase, open: () => Promise<Store>): Promise<void> {
  const stores: Store[] = [];
  const storeOf = async (tab: number) => (stores[tab] ??= await open());
  for (const step of steps) {
    const store = await storeOf(step.tab ?? 0);
    if ("reopen" in step) {
      store.close();
      delete stores[step.tab ?? 0];
    } else {
      expectEqual(await outcome(store, step), "gives" in step ? step.gives : "refused" in step ? step.refused : undefined, step);
    }
  }
  for (const store of stores) store?.close();
}

async function outcome(store: Store, step: Step): Promise<unknown> {
  if ("wipe" in step) return Object.fromEntries(await store.wipe());
  if ("newTerm" in step) {
    const { term, seq } = await store.newTerm();
    return { term, seq };
  }
  if ("load" in step) {
    const { records, seq } = await store.load();
    return { records: Object.fromEntries(records), seq };
  }
  if (!("save" in step)) return undefined;
  try {
    const { changes, seq } = await store.save(changesOf(step.save), step.term);
    return { changes: Object.fromEntries(changes), seq };
  } catch (error) {
    return (error as GregorError).code;
  }
}

export const changesOf = (json: Json): Changes => new Map(Object.entries(json)) as Map<RecordKey, unknown>;

function expectEqual(found: unknown, wanted: unknown, step: Step): void {
  const [is, should] = [canonical(found), canonical(wanted)];
  if (is !== should) throw new Error(`${JSON.stringify(step)} gave ${is}`);
}

/** JSON with sorted keys. */
const canonical = (value: unknown): string | undefined =>
  JSON.stringify(value, (_, part) =>
    part !== null && typeof part === "object" && !Array.isArray(part)
      ? Object.fromEntries(Object.entries(part).sort(([a], [b]) => (a < b ? -1 : 1)))
      : part,
  );
