import { expectTypeOf, test } from "vitest";
import { createGregor, type Gregor } from "../src/client.js";
import type { InboxEntry } from "../src/inbox.js";
import type { Item } from "../src/message.js";
import {
  GregorProvider,
  useGregor,
  useInbox,
  useItems,
  useValue,
} from "../src/react/index.js";

interface AppBodies {
  theme: "light" | "dark";
  [room: `chat.${string}`]: { readonly text: string };
}

declare module "../src/react/index.js" {
  interface Register {
    bodies: AppBodies;
  }
}

// What is here is checked by the compiler, and never runs.
const types = (): void => {
  expectTypeOf(useGregor()).toEqualTypeOf<Gregor<AppBodies> | undefined>();
  expectTypeOf(useValue("theme")).toEqualTypeOf<"light" | "dark" | undefined>();
  expectTypeOf(useValue("chat.room7")).toEqualTypeOf<{ readonly text: string } | undefined>();
  expectTypeOf(useValue("another key")).toEqualTypeOf<unknown>();
  expectTypeOf(useItems("chat.")).toEqualTypeOf<readonly Item<{ readonly text: string }>[]>();
  expectTypeOf(useItems("another category")).toEqualTypeOf<readonly Item<unknown>[]>();
  expectTypeOf(useItems()).toExtend<readonly Item[]>();
  expectTypeOf(useInbox()).toEqualTypeOf<readonly InboxEntry[]>();

  void useGregor()?.put("theme", "dark");
  // @ts-expect-error: no such theme
  void useGregor()?.put("theme", "red");
  // @ts-expect-error: a message of a chat has a text
  void useGregor()?.put("chat.room7", {});
  void useGregor()?.put("another category", "anything");
};

const options = { url: "http://gregor.test", user: "alice", token: "alice" };

const providers = (): void => {
  GregorProvider({ options });
  GregorProvider({ client: createGregor(options) });
  GregorProvider({ client: createGregor<AppBodies>(options) });
  // @ts-expect-error: either a client or the options of one
  GregorProvider({ client: createGregor(options), options });
  // @ts-expect-error: one of the two
  GregorProvider({});
};

test("bodies have the types that the app has named", () => {
  expectTypeOf(types).toBeFunction();
  expectTypeOf(providers).toBeFunction();
});
