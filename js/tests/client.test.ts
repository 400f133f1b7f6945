/** What an app sees of a client. */

import { IDBFactory } from "fake-indexeddb";
import { describe, expect, expectTypeOf, test, vi } from "vitest";
import { createGregor, type Gregor } from "../src/client.js";
import { GregorError } from "../src/errors.js";
import type { DismissKeyOptions, Item } from "../src/message.js";
import { memoryDatabase } from "../src/stores/memory.js";
import type { Database } from "../src/stores/store.js";
import { TestServer } from "../src/testing/index.js";
import { START, World, item, snapshot, stored, texts, welcome } from "./fakes/world.js";

const ALL = ["created", "dismissed", "out_of_band", "synced", "write_rejected", "online", "offline", "erased", "missed"] as const;

/** The events of a client as short texts. */
function summaries(gregor: Gregor): string[] {
  const heard: string[] = [];
  for (const type of ALL) {
    gregor.on(type, (event: any) => heard.push(event.item ? `${event.why ?? type} ${event.item.body}` : type));
  }
  return heard;
}

/** A database that fails, or takes its time, as long as a test wants. */
function unreliable() {
  const real = memoryDatabase(true);
  const broken = {
    durable: true,
    saves: 0,
    before: async () => {},
    transact: async (...args: Parameters<Database["transact"]>) => {
      await broken.before();
      broken.saves++;
      return real.transact(...args);
    },
    close() {},
  };
  return broken as typeof broken & Database;
}

const fails = (): Promise<never> =>
  Promise.reject(new GregorError({ code: "unavailable", action: "retry", message: "the disk is full" }));

describe("a write", () => {
  test("shows at once, is durable when it resolves, and is sent when there is a network", async () => {
    const server = new TestServer();
    const phone = server.device("alice");
    await phone.goOffline();
    const gregor = await phone.open();
    const written = gregor.put("theme", "dark");
    expect(gregor.get("theme")?.body).toBe("dark");
    await written;
    await gregor.close();
    const again = await phone.open();
    expect(again.get("theme")?.body).toBe("dark");
    expect(again.status).toMatchObject({ online: false, unsent: 1, lastError: { code: "unavailable" } });
    await phone.goOnline();
    expect(again.status).toMatchObject({ online: true, synced: true, unsent: 0, lastError: null });
    expect(texts(await server.device("alice", "laptop").open())).toEqual(["dark"]);
  });

  test("can be made before the store is loaded", async () => {
    const world = new World();
    const gregor = createGregor({
      url: "http://x", user: "alice", token: "t", store: world.database, environment: world.environment(),
    });
    expect(gregor.items()).toEqual([]);
    await gregor.put("theme", "dark");
    expect(texts(gregor)).toEqual(["dark"]);
  });

  test("is saved together with those that wait", async () => {
    const world = new World();
    const store = unreliable();
    const gregor = await world.tab({ store });
    const before = store.saves;
    await Promise.all(Array.from({ length: 100 }, (_, n) => gregor.create("n", n)));
    expect(store.saves - before).toBe(2);
    expect(texts(gregor)).toEqual(Array.from({ length: 100 }, (_, n) => n));
  });

  test("that cannot be saved changes nothing, and is not sent", async () => {
    const world = new World();
    const store = unreliable();
    const gregor = await world.tab({ store });
    const socket = await world.connect();
    await gregor.put("theme", "light");
    const heard = summaries(gregor);
    store.before = fails;
    const sent = socket.sent.length;
    await expect(gregor.put("theme", "dark")).rejects.toMatchObject({ code: "unavailable" });
    expect(texts(gregor)).toEqual(["light"]);
    expect(gregor.status).toMatchObject({ durable: false, unsent: 1 });
    expect(socket.sent).toHaveLength(sent);
    store.before = async () => {};
    await gregor.put("theme", "blue");
    await world.settled();
    expect(gregor.status.durable).toBe(true);
    expect(heard.slice(-2)).toEqual(["replaced light", "created blue"]);
  });

  test("waits for a slow store, of which the status says that nothing is durable", async () => {
    const world = new World();
    const store = unreliable();
    const gregor = await world.tab({ store });
    let goOn = () => {};
    store.before = () => new Promise((resolve) => (goOn = resolve));
    const written = gregor.put("theme", "dark");
    await world.advance(8_001);
    expect(gregor.status.durable).toBe(false);
    expect(texts(gregor)).toEqual(["dark"]);
    goOn();
    await written;
    expect(gregor.status.durable).toBe(true);
  });

  test("that rejects, as ten thousand at once do, leaves a client that works", async () => {
    const world = new World();
    const options = { url: "http://x", user: "alice", token: "t", store: world.database };
    const gregor = createGregor({ ...options, environment: world.environment() });
    const writes = Array.from({ length: 10_000 }, (_, n) => gregor.snooze(`m${n}`, "1h"));
    const outcomes = await Promise.allSettled(writes);
    expect(outcomes.every(({ status }) => status === "rejected")).toBe(true);
    await gregor.create("a", 1);
    expect(texts(gregor)).toEqual([1]);
  });

  test("that is invalid or in conflict rejects alone", async () => {
    const world = new World();
    const gregor = await world.tab();
    const results = await Promise.allSettled([
      gregor.put("a", 1, { msgId: "m" }),
      gregor.put("b", 2, { msgId: "m" }),
      gregor.create("", 3),
      gregor.put("c", 4, { expires: "1ms" }),
      gregor.put("d", () => {}),
      gregor.put("e", 5, { deviceId: "" }),
      gregor.snooze("nothing", "1h"),
      gregor.put("f", 6),
    ]);
    const outcomes = results.map((result) => (result.status === "rejected" ? [result.reason.code, result.reason.field] : "saved"));
    expect(outcomes).toEqual([
      "saved",
      ["conflict", "msg_id"],
      ["invalid", "category"],
      ["invalid", "expires"],
      ["invalid", "body"],
      ["invalid", "deviceId"],
      ["invalid", "msg_id"],
      "saved",
    ]);
    expect(texts(gregor)).toEqual([1, 6]);
  });

  test("that is rejected by the node is taken back", async () => {
    const server = new TestServer({ refuse: ({ creation }) => (creation?.category === "bad" ? "is bad" : undefined) });
    const gregor = await server.device("alice").open();
    const heard = summaries(gregor);
    await gregor.put("bad", 1, { msgId: "m" });
    await gregor.put("good", 2);
    await server.settled();
    expect(heard).toEqual(["created 1", "created 2", "dismissed 1", "write_rejected"]);
    expect(gregor.rejected()).toMatchObject([{ message: { msg_id: "m" }, error: { code: "invalid" } }]);
    await gregor.discard("m");
    expect(gregor.rejected()).toEqual([]);
  });
});

test("each kind of write does on all devices what it says", async () => {
  const server = new TestServer();
  const phone = await server.device("alice").open();
  const laptop = await server.device("alice", "laptop").open();
  const a = await phone.create("chat.a", "a");
  const b = await phone.create("chat.b", "b");
  await phone.create("chat.c", "c", { thisDevice: true });
  await phone.put("draft", "d", { key: "k", expires: "1h" });
  await server.settled();
  expect(texts(laptop)).toEqual(["a", "b", "d"]);
  expect(phone.count("chat.")).toBe(3);
  await laptop.hide(a);
  expect(texts(laptop)).toEqual(["b", "d"]);
  await laptop.dismiss(b);
  await laptop.snooze(laptop.get("k")!.msg_id, "30m");
  await server.settled();
  expect(texts(phone)).toEqual(["a", "c"]);
  await server.advance(30 * 60_000);
  expect(texts(phone)).toEqual(["a", "c", "d"]);
  await server.advance(30 * 60_000);
  expect(texts(phone)).toEqual(["a", "c"]);
  await laptop.dismissCategory("chat.", { prefix: true });
  await server.settled();
  expect(texts(phone)).toEqual(["c"]);
  await phone.dismissCategory("chat.c");
  await phone.put("x", 1);
  await phone.dismissKey("x");
  expect(texts(phone)).toEqual([]);
});

describe.each([
  ["category", (device: Gregor, options?: DismissKeyOptions) => device.dismissCategory("theme", options)],
  ["key", (device: Gregor, options?: DismissKeyOptions) => device.dismissKey(["old", "new"], options)],
])("a device without a network that dismisses a %s", (_, dismiss) => {
  test.each([
    ["leaves what it has not been told of", undefined, ["new"]],
    ["up to now leaves nothing", "0s", []],
    ["up to a time leaves what was created later", "-30m", ["new"]],
  ])("%s", async (_, endTime, left) => {
    const server = new TestServer();
    const device = server.device("alice");
    const gregor = await device.open();
    const other = await server.device("alice", "other").open();
    await server.put("alice", "theme", "old", { key: "old" });
    await server.advance(3600_000);
    await device.goOffline();
    await server.put("alice", "theme", "new", { key: "new" });
    await server.advance(1000);
    await dismiss(gregor, { endTime });
    await device.goOnline();
    await server.settled();
    expect([texts(gregor), texts(other)]).toEqual([left, left]);
  });
});

describe("what is shown", () => {
  test("is the same array, as long as nothing in it changes", async () => {
    const world = new World();
    const gregor = await world.tab();
    await gregor.put("chat.a", 1);
    const [chat, mail, all] = [gregor.items("chat."), gregor.items("mail"), gregor.items()];
    await gregor.put("mail", 2);
    expect(gregor.items("chat.")).toBe(chat);
    expect(gregor.items("mail")).not.toBe(mail);
    expect(gregor.items()).not.toBe(all);
  });

  test("is the same array, when the node says something else while it is unsent", async () => {
    const world = new World();
    const gregor = await world.tab();
    world.socket.open().say(welcome(world.clock.now), snapshot([], world.clock.now));
    await world.settled();
    const { cursor } = gregor.replica.device;
    await world.advance(1000);
    await gregor.put("chat.a", 1);
    const chat = gregor.items("chat.");
    world.socket.say(stored("m", cursor, cursor + 1, { creation: { category: "mail", body: 2 } }));
    await world.settled();
    expect(gregor.count("mail")).toBe(1);
    expect(gregor.items("chat.")).toBe(chat);
  });

  test("begins and ends at its time, with an event, however late a timer is", async () => {
    const world = new World();
    const gregor = await world.tab();
    const heard = summaries(gregor);
    await gregor.create("soon", "s", { starts: "1h", expires: "60d" });
    await world.advance(3_600_000 - 1);
    expect(texts(gregor)).toEqual([]);
    world.clock.now += 1;
    expect(texts(gregor)).toEqual(["s"]);
    world.clock.now = START + 60 * 86_400_000 - 1;
    await world.advance(0);
    expect(texts(gregor)).toEqual(["s"]);
    await world.advance(1);
    expect(texts(gregor)).toEqual([]);
    expect(heard.filter((event) => event.includes(" "))).toEqual(["created s", "expired s"]);
  });

  test("follows the clock of the node", async () => {
    const world = new World();
    const gregor = await world.tab();
    const socket = world.socket.open();
    await world.settled();
    const now = START + 3_600_000; // by the node, an hour later
    const expires_at = (now + 60_000) * 1000;
    socket.say({ type: "welcome", uid: "alice", device_id: "d", now: now * 1000, epoch: 0, limits: {} });
    await world.settled();
    socket.say(snapshot([item("a", "here", { expires_at })], now));
    await world.settled();
    expect(texts(gregor)).toEqual(["here"]);
    await world.advance(59_999);
    expect(texts(gregor)).toEqual(["here"]);
    await world.advance(1);
    expect(texts(gregor)).toEqual([]);
    await gregor.close();
    expect((await world.tab()).state().as_of).toBe(world.clock.now * 1000 + 3_600_000_000);
  });

  test("at a stated time is exact, or forgotten", async () => {
    const world = new World();
    const gregor = await world.tab();
    await world.connect([item("a", "a", { expires_at: (START + 60_000) * 1000 })]);
    await world.advance(1_000);
    expect(gregor.state({ at: "30s" }).items).toHaveLength(1);
    expect(gregor.state({ at: "2m" }).items).toHaveLength(0);
    expect(() => gregor.state({ at: "-1h" })).toThrow(expect.objectContaining({ code: "history-forgotten" }));
  });

  test("is told to subscribers after each change, and after each change of the status, and not else", async () => {
    const world = new World();
    const gregor = await world.tab();
    await world.connect();
    const seen = vi.fn();
    const stop = gregor.subscribe(seen);
    const status = gregor.status;
    await world.advance(60_000);
    expect(seen).not.toHaveBeenCalled();
    expect(gregor.status).toBe(status);
    await gregor.put("a", 1);
    expect(seen).toHaveBeenCalled();
    expect(gregor.status).not.toBe(status);
    stop();
    seen.mockClear();
    await gregor.put("a", 2);
    expect(seen).not.toHaveBeenCalled();
  });

  test("is told once for an item, however often it comes, and not again after a restart", async () => {
    const world = new World();
    const gregor = await world.tab();
    const heard = summaries(gregor);
    const socket = await world.connect();
    await gregor.put("a", "mine", { msgId: "m" });
    const cursor = START * 1000;
    socket.say({ type: "ack", n: 1, results: [{ status: "stored", msg_id: "m", ctime: cursor + 5, visible: true }] });
    await world.settled();
    const frame = stored("m", cursor, cursor + 5, { creation: { category: "a", body: "mine", key: "a" } });
    socket.say(frame, frame);
    await world.settled();
    await gregor.close();
    const again = await world.tab();
    const later = summaries(again);
    await world.connect([item("b", "b")]);
    expect(heard.filter((event) => event.includes(" "))).toEqual(["created mine"]);
    expect(later).toEqual(["dismissed mine", "created b", "online", "synced"]);
  });
});

test("a listener that throws stops nobody, and is reported as an error of the page", async () => {
  const world = new World();
  const gregor = await world.tab();
  const reported = vi.fn();
  const handlers = process.listeners("uncaughtException");
  process.removeAllListeners("uncaughtException").on("uncaughtException", reported);
  const seen = vi.fn();
  const boom = () => {
    throw Error("boom");
  };
  gregor.on("created", boom);
  gregor.on("created", seen);
  gregor.subscribe(boom);
  gregor.subscribe(seen);
  await gregor.put("a", 1);
  await new Promise((resolve) => setImmediate(resolve));
  process.removeAllListeners("uncaughtException");
  for (const handler of handlers) process.on("uncaughtException", handler);
  expect(seen.mock.calls.length).toBeGreaterThanOrEqual(2);
  expect(reported).toHaveBeenCalled();
});

describe("an erase", () => {
  test("leaves nothing, stops the client, and ends when the app asks for a new life", async () => {
    const server = new TestServer();
    const phone = server.device("alice");
    const gregor = await phone.open();
    await gregor.put("diary", "dear");
    await server.settled();
    await phone.goOffline();
    await gregor.put("diary", "unsent");
    const heard = summaries(gregor);
    await server.erase("alice");
    await phone.goOnline();
    expect(heard).toEqual(["dismissed unsent", "erased", "offline"]);
    expect(gregor.status).toMatchObject({ online: false, unsent: 0, retryAt: null, lastError: { code: "erased" } });
    await expect(gregor.put("diary", "more")).rejects.toMatchObject({ code: "erased" });
    await expect(gregor.waitSynced()).rejects.toMatchObject({ code: "erased" });
    await server.advance(3_600_000);
    expect(phone.connections).toBe(0);
    await gregor.close();

    const again = await phone.open();
    await expect(again.put("diary", "more")).rejects.toMatchObject({ code: "erased" });
    expect(phone.connections).toBe(0);
    again.reconnect();
    await again.put("diary", "new");
    await server.settled();
    expect(again.status).toMatchObject({ online: true, unsent: 0 });
    expect(server.items("alice").map(({ body }) => body)).toEqual(["new"]);
  });

  test("is told again to an app that may not have heard of it", async () => {
    const server = new TestServer();
    const phone = server.device("alice");
    const gregor = await phone.open();
    await server.erase("alice");
    await gregor.close();
    const again = createGregor(phone.options);
    const heard = summaries(again);
    await server.settled();
    expect(heard).toContain("erased");
  });
});

test("who waits for a sync when the client opens hears that the user is erased", async () => {
  const server = new TestServer();
  const phone = server.device("alice");
  const gregor = await phone.open();
  await server.erase("alice");
  await gregor.close();
  const again = createGregor(phone.options);
  const refused = expect(again.waitSynced()).rejects.toMatchObject({ code: "erased" });
  await server.settled();
  await refused;
});

test("a store that does not answer is not durable", async () => {
  const world = new World();
  const gregor = await world.tab({ store: { durable: true, transact: () => new Promise(() => {}), close() {} } });
  expect(gregor.status.durable).toBe(false);
});

describe("an end", () => {
  test("saves what is written, and refuses what comes after it", async () => {
    const world = new World();
    const gregor = await world.tab();
    const written = gregor.put("a", 1);
    const closed = gregor.close();
    await written;
    await closed;
    await expect(gregor.put("a", 2)).rejects.toMatchObject({ code: "unavailable" });
    await expect(gregor.flush()).rejects.toMatchObject({ code: "unavailable" });
    await gregor.close();
    expect(texts(gregor)).toEqual([1]);
    expect(texts(await world.tab())).toEqual([1]);
  });

  test("ends the connection, timers and whatever waits", async () => {
    const world = new World();
    const gregor = await world.tab();
    const socket = await world.connect();
    await gregor.put("a", 1);
    const flushed = expect(gregor.flush()).rejects.toMatchObject({ code: "unavailable" });
    await gregor.close();
    await flushed;
    expect(socket.isClosed).toBe(true);
    expect(gregor.status).toMatchObject({ online: false });
    await world.advance(3_600_000);
    expect(world.sockets).toHaveLength(1);
  });

  test("by logout wipes all, and gives back what was unsent", async () => {
    const world = new World();
    const gregor = await world.tab();
    await world.connect([item("a", "secret")]);
    await gregor.put("b", "unsent", { msgId: "m" });
    const heard = summaries(gregor);
    expect(await gregor.logout()).toMatchObject([{ msg_id: "m" }]);
    expect(texts(gregor)).toEqual([]);
    expect(heard).toEqual(expect.arrayContaining(["dismissed secret", "dismissed unsent"]));
    const next = await world.tab();
    expect(texts(next)).toEqual([]);
    expect(next.status.unsent).toBe(0);
  });
});

describe("a logout", () => {
  test("that the store refuses has no effect", async () => {
    const world = new World();
    const store = unreliable();
    const gregor = await world.tab({ store });
    const socket = await world.connect([item("a", "a")]);
    store.before = fails;
    await expect(gregor.logout()).rejects.toThrow("the disk is full");
    store.before = async () => {};
    expect(gregor.status).toMatchObject({ online: true, synced: true });
    expect(socket.isClosed).toBe(false);
    await gregor.put("b", "b");
    expect(texts(gregor)).toEqual(["a", "b"]);
  });

  test("after the store is lost removes what is in memory", async () => {
    const world = new World();
    const indexedDB = new IDBFactory();
    const environment = { ...world.environment(), indexedDB, setTimeout, clearTimeout };
    const gregor = createGregor({ url: "http://x", user: "alice", token: "t", environment: environment as never });
    await gregor.put("a", 1);
    const [{ name }] = (await indexedDB.databases()) as [{ name: string }];
    await new Promise((resolve) => (indexedDB.deleteDatabase(name).onsuccess = resolve));
    expect(await gregor.logout()).toHaveLength(1);
    expect(texts(gregor)).toEqual([]);
  });
});

describe("a store that cannot be used", () => {
  test.each([
    ["of another user", { user: "bob" }, /belongs to the user alice/],
    ["of another device", { deviceId: "laptop" }, /not of the device laptop/],
  ])("%s is left as it is, and the status says so", async (_, options, reason) => {
    const world = new World();
    const gregor = await world.tab({ deviceId: "phone" });
    await gregor.put("a", 1);
    await gregor.close();
    const before = world.sockets.length;
    const other = await world.tab({ deviceId: "phone", ...options });
    await other.ready;
    expect(other.status).toMatchObject({ durable: false, online: false, lastError: { code: "setup", message: expect.stringMatching(reason) } });
    await expect(other.put("b", 2)).rejects.toMatchObject({ code: "setup" });
    await expect(other.waitSynced()).rejects.toMatchObject({ code: "setup" });
    await world.advance(60_000);
    expect(world.sockets).toHaveLength(before);
    expect(texts(await world.tab({ deviceId: "phone" }))).toEqual([1]);
  });

  test("because a newer version wrote it is left as it is", async () => {
    const world = new World();
    const store: Database = {
      durable: true,
      transact: () => Promise.reject(new GregorError({ code: "setup", action: "stop", message: "a newer version" })),
      close() {},
    };
    const gregor = await world.tab({ store });
    expect(gregor.status).toMatchObject({ durable: false, lastError: { code: "setup" } });
    await expect(gregor.put("b", 2)).rejects.toMatchObject({ code: "setup" });
  });

  test("because there is none: the client works in memory, and says so", async () => {
    const world = new World();
    const { store, ...options } = { store: undefined, url: "http://x", user: "alice", token: "t" };
    const gregor = createGregor({ ...options, environment: world.environment() });
    await gregor.put("a", 1);
    await world.settled();
    expect(gregor.status).toMatchObject({ durable: false, unsent: 1 });
    await world.connect();
    expect(gregor.status).toMatchObject({ online: true, durable: false });
  });

  test("to lead, for a while: the status says why the client is offline", async () => {
    const world = new World();
    const store = unreliable();
    let transactions = 0;
    store.before = async () => {
      if (++transactions > 2) await fails(); // after those that read it
    };
    const gregor = await world.tab({ store });
    expect(gregor.status).toMatchObject({ online: false, lastError: { message: "the disk is full" } });
    store.before = async () => {};
    await world.advance(1000);
    await world.connect();
    expect(gregor.status).toMatchObject({ online: true, lastError: null });
    await gregor.close();
  });

  test("when the page opens, because its disk is full: the client goes on in memory", async () => {
    const world = new World();
    const store = { ...memoryDatabase(true), transact: fails };
    const gregor = await world.tab({ store });
    await gregor.put("a", 1);
    const socket = await world.connect();
    expect(gregor.status).toMatchObject({ online: true, durable: false });
    expect(socket.last.messages.map(({ creation }: any) => creation.body)).toEqual([1]);
    await gregor.close();
  });

  test("any more, because another tab has removed it: the client goes on in memory", async () => {
    const world = new World();
    const indexedDB = new IDBFactory();
    const environment = { ...world.environment(), indexedDB, setTimeout, clearTimeout };
    const gregor = createGregor({ url: "http://x", user: "alice", token: "t", environment: environment as never });
    await gregor.ready;
    await gregor.put("a", 1);
    expect(gregor.status.durable).toBe(true);
    const [{ name }] = (await indexedDB.databases()) as [{ name: string }];
    await new Promise((resolve) => (indexedDB.deleteDatabase(name).onsuccess = resolve));
    await gregor.put("b", 2).catch(() => gregor.put("b", 2));
    expect(gregor.status).toMatchObject({ durable: false, unsent: 2, lastError: { code: "unavailable" } });
    expect(texts(gregor)).toEqual([1, 2]);
    const socket = await world.connect();
    expect(gregor.status).toMatchObject({ online: true, durable: false });
    expect(socket.last.messages.map(({ creation }: any) => creation.body)).toEqual([1, 2]);
    await gregor.close();
  });

  test("a record that cannot be read costs itself", async () => {
    const world = new World();
    const gregor = await world.tab();
    await gregor.put("a", 1, { msgId: "m1" });
    await gregor.put("b", 2, { msgId: "m2" });
    await gregor.close();
    await world.database.transact([], (_, put) => put("outbox/m1", { number: "one" }));
    const again = await world.tab();
    expect(texts(again)).toEqual([2]);
    expect(again.status.setAside).toBe(1);
  });
});

test("where pages are rendered, a client opens and stays offline", async () => {
  const token = vi.fn(() => "t");
  const gregor = createGregor({ url: "https://example.com", user: "alice", token });
  await gregor.ready;
  expect(gregor.items()).toEqual([]);
  expect(gregor.status).toMatchObject({ online: false, durable: false, retryAt: null });
  await gregor.put("theme", "dark");
  expect(token).not.toHaveBeenCalled();
  await gregor.close();
});

test.each([
  ["http://127.0.0.1:9911", "http://127.0.0.1:9911"],
  ["https://example.com/gregor/?x#y", "https://example.com/gregor"],
  ["wss://example.com///", "https://example.com"],
])("the address of a server: %s", async (url, http) => {
  const world = new World();
  const sockets: string[] = [];
  const environment = { ...world.environment(), WebSocket: class { constructor(to: string) { sockets.push(to); } close() {} } as never };
  await world.tab({ url, environment });
  expect(sockets).toEqual([`${http.replace("http", "ws")}/v1/connect`]);
});

test.each([
  [{ url: "/gregor" }, "url"],
  [{ url: "ftp://x" }, "url"],
  [{ url: "http://" }, "url"],
  [{ user: "" }, "user"],
  [{ user: 7 as never }, "user"],
  [{ token: "" }, "token"],
  [{ deviceId: "" }, "deviceId"],
])("what cannot be meant is refused at once: %o", (options, field) => {
  const make = () => createGregor({ url: "http://x", user: "alice", token: "t", ...options });
  expect(make).toThrow(expect.objectContaining({ field }));
});

test("bodies have the types that the app has named", () => {
  type Chat = { readonly text: string };
  interface Bodies {
    theme: "dark" | "light";
    volume: number;
    [room: `chat.${string}`]: Chat;
  }
  const check = (gregor: Gregor<Bodies>): void => {
    expectTypeOf(gregor.get("theme")).toEqualTypeOf<Item<"dark" | "light"> | undefined>();
    expectTypeOf(gregor.get("chat.room7")).toEqualTypeOf<Item<Chat> | undefined>();
    expectTypeOf(gregor.get("other")).toEqualTypeOf<Item<unknown> | undefined>();
    expectTypeOf(gregor.items("chat.")).toEqualTypeOf<readonly Item<Chat>[]>();
    expectTypeOf(gregor.items("chat.room7")).toEqualTypeOf<readonly Item<Chat>[]>();
    expectTypeOf(gregor.items("other.")).toEqualTypeOf<readonly Item<unknown>[]>();
    expectTypeOf(gregor.items()).toEqualTypeOf<readonly Item<Bodies[keyof Bodies]>[]>();
    expectTypeOf(gregor.put<"theme">).parameter(1).toEqualTypeOf<"dark" | "light">();
    // @ts-expect-error: two scopes
    void gregor.create("theme", "dark", { thisDevice: true, deviceId: "phone" });
    // @ts-expect-error: not a theme
    void gregor.put("theme", "blue");
    void gregor.create("anything", { else: 1 });
    expectTypeOf(createGregor({} as never).get("x")).toEqualTypeOf<Item<unknown> | undefined>();
  };
  expect(check).toBeTypeOf("function");
});
