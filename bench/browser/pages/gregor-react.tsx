import { createGregor, type Item } from "gregor-sync";
import { GregorProvider, useCount, useItems, useValue } from "gregor-sync/react";
import { bodyOf, type Body } from "../items.ts";
import { show } from "./app.tsx";
import { address, user } from "./page.ts";

const gregor = createGregor({ url: address, user, token: user });

show({
  Provider: ({ children }) => <GregorProvider client={gregor}>{children}</GregorProvider>,
  useCount: () => useCount("item"),
  useTheme: () => useValue("theme"),
  useRows: () => useItems("item").map((item) => ({ id: item.msg_id, row: item })),
  useTitle: (row) => (row as Item<Body>).body.title,
  write(write) {
    if ("item" in write) void gregor.create("item", bodyOf(write.item));
    else void gregor.put(write.name, write.value);
  },
});
