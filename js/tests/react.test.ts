// @vitest-environment happy-dom
import fc from "fast-check";
import {
  act,
  createElement,
  startTransition,
  StrictMode,
  useState,
  type ReactElement,
  type ReactNode,
} from "react";
import { createRoot, hydrateRoot, type Root } from "react-dom/client";
import { renderToString } from "react-dom/server";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import {
  GregorProvider,
  useCount,
  useGregor,
  useGregorStatus,
  useInbox,
  useItems,
  useValue,
  type GregorProviderProps,
} from "../src/react/index.js";
import type { Item } from "../src/message.js";
import { TestServer, type TestDevice } from "../src/testing/index.js";

Object.assign(globalThis, { IS_REACT_ACT_ENVIRONMENT: true });

let server: TestServer;
let phone: TestDevice;
let container: HTMLElement;
let root: Root | undefined;

function begin(): void {
  server = new TestServer();
  phone = server.device("alice");
  container = document.createElement("div");
}

beforeEach(() => {
  begin();
  vi.spyOn(console, "error");
});

afterEach(async () => {
  await act(async () => root?.unmount());
  root = undefined;
  expect(console.error).not.toHaveBeenCalled();
  vi.restoreAllMocks();
});

/** Lets the world do something, and React render what follows. */
const happens = async (what: () => unknown): Promise<void> => {
  await act(async () => {
    await what();
    await server.settled();
  });
};

/** Shows this, in place of what was mounted before. */
const mount = async (element: ReactElement): Promise<void> => {
  await happens(() => root?.unmount());
  root = createRoot(container);
  await happens(() => root?.render(element));
};

/** A component that shows what a hook selects, and what it has shown. */
function watching<T>(hook: () => T): { readonly Watcher: () => string; readonly renders: T[] } {
  const renders: T[] = [];
  const Watcher = (): string => {
    const selected = hook();
    renders.push(selected);
    return JSON.stringify(selected) ?? "nothing";
  };
  return { Watcher, renders };
}

const provided = (props: GregorProviderProps, ...children: ReactNode[]): ReactElement =>
  createElement(GregorProvider, props as GregorProviderProps, ...children);

// What renders

const ids = (items: readonly (Item | undefined)[]) => items.map((item) => [item?.msg_id, item?.ctime]);

const selections = {
  "all items": () => ids(useItems()),
  "items of a prefix": () => ids(useItems("chat.")),
  "a count": () => useCount("chat."),
  "a value": () => useValue("theme"),
  "the inbox": () => useInbox().map(({ item, marker }) => ids([item, marker])),
  "the inbox of a topic": () => useInbox("likes").map(({ item, marker }) => ids([item, marker])),
  status: () => ({ ...useGregorStatus() }),
} as const;

/** What the world may do. */
const updates = {
  "a message of the chat": () => server.create("alice", "chat.room1", { text: "hello" }),
  "a message of another user": () => server.create("bob", "chat.room1"),
  "the theme": () => server.put("alice", "settings", "dark", { key: "theme" }),
  "another setting": () => server.put("alice", "settings", "loud", { key: "volume" }),
  "a like": () => server.notify("alice", "likes", { title: "Ann liked your photo" }, { key: "photo7" }),
  "an order": () => server.notify("alice", "orders", { title: "Shipped" }),
  "the end of all chats": () => server.dismissCategory("alice", "chat.", { prefix: true }),
  "the end of a key that nobody has": () => server.dismissKey("alice", "nobody has it"),
  "a minute": () => server.advance(60_000),
  "a break of the connection": async () => {
    await phone.goOffline();
    await phone.goOnline();
  },
} as const;

type Selection = keyof typeof selections;
type Update = keyof typeof updates;
const names = <T extends object>(table: T): (keyof T)[] => Object.keys(table) as (keyof T)[];

// Each render shows something else than the one before, and the last one what is selected now.
test.each(names(selections))("%s renders when it changes, and only then", async (name: Selection) => {
  await fc.assert(
    fc.asyncProperty(fc.array(fc.constantFrom(...names(updates)), { maxLength: 12 }), async (history: Update[]) => {
      begin();
      const gregor = await phone.open();
      const { Watcher, renders } = watching<unknown>(selections[name]);
      await mount(provided({ client: gregor }, createElement(Watcher)));
      for (const update of history) await happens(updates[update]);
      const shown = renders.map((selected) => JSON.stringify(selected));
      expect(shown).toEqual(shown.filter((selected, place) => !place || selected !== shown[place - 1]));
      const late = watching<unknown>(selections[name]);
      await mount(provided({ client: gregor }, createElement(late.Watcher)));
      expect(late.renders[0]).toEqual(renders.at(-1));
      await happens(() => gregor.close());
    }),
    { numRuns: 30 },
  );
});

test("a page of another prefix shows the other items at once", async () => {
  const gregor = await phone.open();
  await server.create("alice", "a.1");
  await server.create("alice", "b.1");
  let setPrefix: (prefix: string) => void = () => {};
  const List = (): string => {
    const [prefix, set] = useState("a.");
    setPrefix = set;
    return useItems(prefix).map((item) => item.category).join();
  };
  await mount(provided({ client: gregor }, createElement(List)));
  expect(container.textContent).toBe("a.1");
  await happens(() => setPrefix("b."));
  expect(container.textContent).toBe("b.1");
});

// The client of a provider

test("a provider makes one client in strict mode, and closes it when it is gone", async () => {
  const { Watcher } = watching(() => useCount());
  await server.create("alice", "a");
  await mount(createElement(StrictMode, null, provided({ options: phone.options }, createElement(Watcher))));
  expect(container.textContent).toBe("1");
  expect(phone.connections).toBe(1);
  await happens(() => root?.render(createElement(StrictMode)));
  expect(phone.connections).toBe(0);
});

test("a provider keeps its client when it renders again", async () => {
  let client: unknown;
  const Watcher = (): ReactNode => void (client = useGregor());
  const page = () => provided({ options: { ...phone.options } }, createElement(Watcher));
  await mount(page());
  const first = client;
  await happens(() => root?.render(page()));
  expect(client).toBe(first);
  expect(phone.connections).toBe(1);
});

test("a provider of another user never shows what the one before had", async () => {
  const { Watcher, renders } = watching(() => useItems().map((item) => item.body));
  await server.create("alice", "a", "hers");
  await server.create("bob", "a", "his");
  const bobs = server.device("bob");
  await mount(provided({ options: phone.options }, createElement(Watcher)));
  await happens(() => root?.render(provided({ options: bobs.options }, createElement(Watcher))));
  const shown = renders.map(String);
  expect(shown.filter((each, place) => each !== shown[place - 1])).toEqual(["", "hers", "", "his"]);
  expect([phone.connections, bobs.connections]).toEqual([0, 1]);
});

test("a provider does not close a client of the app", async () => {
  const gregor = await phone.open();
  await mount(provided({ client: gregor }));
  await happens(() => root?.unmount());
  expect(phone.connections).toBe(1);
  expect(gregor.status.online).toBe(true);
});

// Servers, hydration, concurrent rendering

const page = (props: GregorProviderProps): ReactElement => {
  const Watchers = (): ReactNode => [
    useCount(),
    useItems().length,
    useInbox().length,
    String(useValue("theme")),
    String(useGregorStatus().online),
  ].join();
  return provided(props, createElement(Watchers));
};

test.each([
  ["options", async () => ({ options: phone.options })],
  ["a client that knows something already", async () => ({ client: await phone.open() })],
] as const)("a page of a server is hydrated with %s, and then shows what the device has", async (_, props) => {
  await server.put("alice", "theme", "dark");
  container.innerHTML = renderToString(page(await props()));
  expect(container.textContent).toBe("0,0,0,undefined,false");
  await happens(async () => {
    root = hydrateRoot(container, page(await props()));
  });
  expect(container.textContent).toBe("1,1,0,dark,true");
});

test("a server that renders a page connects to nothing", async () => {
  renderToString(page({ options: phone.options }));
  await server.settled();
  expect(phone.connections).toBe(0);
});

test("all parts of a page show the same, though something changes while it renders", async () => {
  const gregor = await phone.open();
  const shown = (): string[] => [...container.querySelectorAll("i")].map((part) => part.textContent ?? "");
  const torn: string[][] = [];
  let inRender = 0;
  const Slow = (): ReactElement => {
    inRender += 1;
    const until = performance.now() + 6; // more than React renders without a break
    while (performance.now() < until);
    return createElement("i", null, useCount());
  };
  let show: (parts: number) => void = () => {};
  const Page = (): ReactElement => {
    const [parts, set] = useState(0);
    show = set;
    return createElement("div", null, ...Array.from({ length: parts }, (_, i) => createElement(Slow, { key: i })));
  };
  await mount(provided({ client: gregor }, createElement(Page)));
  Object.assign(globalThis, { IS_REACT_ACT_ENVIRONMENT: false });
  const isShown = new Promise<void>((resolve) => {
    const observer = new MutationObserver(() => {
      if (new Set(shown()).size > 1) torn.push(shown());
      if (shown().length === 8) resolve();
    });
    observer.observe(container, { childList: true, characterData: true, subtree: true });
  });
  startTransition(() => show(8));
  while (inRender < 3) await server.settled(); // React has begun
  expect(shown()).toEqual([]);
  await server.create("alice", "a");
  await isShown;
  Object.assign(globalThis, { IS_REACT_ACT_ENVIRONMENT: true });
  await happens(() => {});
  expect(torn).toEqual([]);
  expect(shown()).toEqual(Array(8).fill("1"));
});
