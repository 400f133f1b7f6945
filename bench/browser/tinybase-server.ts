// The server of TinyBase's WebSocket synchronizer, with stores in memory: one for each path, whose
// name is that of its user. A POST to a path writes as a backend does.
//
// node tinybase-server.ts PORT

import { createServer } from "node:http";
import { json } from "node:stream/consumers";
import { createMergeableStore, type MergeableStore } from "tinybase/mergeable-store";
import { createCustomPersister } from "tinybase/persisters";
import { createWsServer } from "tinybase/synchronizers/synchronizer-ws-server";
import { WebSocket, WebSocketServer } from "ws";
import { bodyOf, itemId, range } from "./items.ts";
import type { BackendWrite } from "./systems.ts";

const MERGEABLE_STORE_ONLY = 2;

const port = Number(process.argv[2]);
const stores = new Map<string, MergeableStore>();

function persisterOf(path: string) {
  const store = createMergeableStore();
  stores.set(path, store);
  const nothing = async (): Promise<undefined> => undefined;
  return createCustomPersister(
    store,
    nothing,
    nothing,
    () => undefined,
    () => {},
    undefined,
    MERGEABLE_STORE_ONLY,
  );
}

function apply(store: MergeableStore, write: BackendWrite): void {
  if ("items" in write) {
    store.transaction(() => range(write.items).forEach((n) => setItem(store, n)));
  } else if ("item" in write) setItem(store, write.item);
  else store.setValue(write.name, write.value);
}

const setItem = (store: MergeableStore, n: number): unknown =>
  store.setRow("items", itemId(n), { ...bodyOf(n) });

/** The server forgets a path without clients; one that says nothing keeps it. */
async function storeAt(path: string): Promise<MergeableStore> {
  if (!stores.has(path)) {
    const client = new WebSocket(`ws://127.0.0.1:${port}/${path}`);
    await new Promise((resolve) => client.once("open", resolve));
    while (!stores.has(path)) await new Promise((resolve) => setTimeout(resolve, 10));
  }
  return stores.get(path)!;
}

const server = createServer((request, response) => {
  void (async () => {
    apply(await storeAt((request.url ?? "/").slice(1)), (await json(request)) as BackendWrite);
    response.end();
  })();
});
createWsServer(new WebSocketServer({ server }), persisterOf);
server.listen(port, "127.0.0.1");
