/** What the browser itself can do: all items in one response, IndexedDB and a BroadcastChannel. */

import type { Body } from "../items.ts";
import { itemId } from "../items.ts";
import { measure } from "./page.ts";

const STORE = "records";

const map = new Map<string, unknown>();
const channel = new BroadcastChannel("bare");
let database: IDBDatabase;
let saved: Promise<unknown> = Promise.resolve();

const ended = (transaction: IDBTransaction): Promise<void> =>
  new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve();
    transaction.onabort = () => reject(transaction.error);
  });

const answer = <T>(request: IDBRequest<T>): Promise<T> =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

function save(entries: Iterable<readonly [string, unknown]>): Promise<void> {
  const transaction = database.transaction(STORE, "readwrite", { durability: "strict" });
  const records = transaction.objectStore(STORE);
  for (const [id, value] of entries) records.put(value, id);
  return ended(transaction);
}

async function put(id: string, value: unknown): Promise<void> {
  map.set(id, value);
  await save([[id, value]]);
  channel.postMessage([id, value]);
}

measure({
  async load() {
    const request = indexedDB.open("bare");
    request.onupgradeneeded = () => request.result.createObjectStore(STORE);
    database = await answer(request);
    const records = database.transaction(STORE).objectStore(STORE);
    const [keys, values] = await Promise.all([answer(records.getAllKeys()), answer(records.getAll())]);
    keys.forEach((key, place) => map.set(key as string, values[place]));
  },

  async sync(items) {
    if (map.size) return;
    const response = await fetch(`/items/${items}`);
    for (const body of (await response.json()) as Body[]) map.set(itemId(body.n), body);
    saved = save(map);
  },

  async stored() {
    await saved;
  },

  count: () => map.size,
  put: (name, value) => void put(name, value),
  onValue(listener) {
    channel.onmessage = ({ data: [name, value] }: MessageEvent<[string, number]>) => {
      map.set(name, value);
      listener(name, value);
    };
  },
});
