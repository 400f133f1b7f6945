import { createMergeableStore } from "tinybase/mergeable-store";
import { createWsSynchronizer } from "tinybase/synchronizers/synchronizer-ws-client";
import { Provider, useCell, useRowCount, useRowIds, useValue } from "tinybase/ui-react";
import { bodyOf, itemId } from "../items.ts";
import { show } from "./app.tsx";
import { address, user } from "./page.ts";

const store = createMergeableStore();
const synchronizer = await createWsSynchronizer(store, new WebSocket(`${address}/${user}`));
await synchronizer.startSync();

show({
  Provider: ({ children }) => <Provider store={store}>{children}</Provider>,
  useCount: () => useRowCount("items"),
  useTheme: () => useValue("theme"),
  useRows: () => useRowIds("items").map((id) => ({ id, row: id })),
  useTitle: (row) => useCell("items", row as string, "title"),
  write(write) {
    if ("item" in write) store.setRow("items", itemId(write.item), { ...bodyOf(write.item) });
    else store.setValue(write.name, write.value);
  },
});
