/** A MergeableStore, which is stored in IndexedDB and synchronized over a WebSocket. */

import { createMergeableStore } from "tinybase/mergeable-store";
import { createIndexedDbPersister } from "tinybase/persisters/persister-indexed-db";
import { createWsSynchronizer } from "tinybase/synchronizers/synchronizer-ws-client";
import { address, measure, user } from "./page.ts";

const IDLE = 0;

const store = createMergeableStore();
const persister = createIndexedDbPersister(store, user);
const count = (): number => store.getRowCount("items");

measure({
  async load() {
    await persister.load();
    await persister.startAutoSave();
  },

  async sync(items) {
    const all = new Promise<void>((resolve) => {
      const check = (): unknown => count() >= items && resolve();
      store.addRowCountListener("items", check);
      check();
    });
    const synchronizer = await createWsSynchronizer(store, new WebSocket(`${address}/${user}`));
    await synchronizer.startSync();
    await all;
  },

  async stored() {
    await new Promise((resolve) => setTimeout(resolve)); // saving begins after the change
    await new Promise<void>((resolve) => {
      const check = (): unknown => persister.getStatus() === IDLE && resolve();
      persister.addStatusListener(check);
      check();
    });
  },

  count,
  put: (name, value) => queueMicrotask(() => store.setValue(name, value)), // listeners may not write
  onValue(listener) {
    store.addValueListener(null, (_, name, value) => listener(name, value as number));
  },
});
