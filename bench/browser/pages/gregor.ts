import { createGregor, type Gregor } from "gregor-sync";
import { address, measure, user } from "./page.ts";

let gregor: Gregor;
let listener: (name: string, value: number) => void = () => {};

measure({
  async load() {
    gregor = createGregor({ url: address, user, token: user });
    gregor.on("created", ({ item }) => listener(item.category, item.body as number));
    await gregor.ready;
  },
  sync: () => gregor.waitSynced(),
  stored: () => gregor.change(() => {}), // the changes before it are saved first
  count: () => gregor.count(),
  put: (name, value) => void gregor.put(name, value),
  onValue(onValue) {
    listener = onValue;
  },
});
