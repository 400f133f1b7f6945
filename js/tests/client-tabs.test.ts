/** The tabs of a browser are one device: one is connected, and all show the same. */

import { describe, expect, test, vi } from "vitest";
import { createGregor, type Gregor } from "../src/client.js";
import type { Message } from "../src/message.js";
import type { Database, Decision } from "../src/stores/store.js";
import type { Channel } from "../src/environment.js";
import { START, World, ack, item, stored, texts } from "./fakes/world.js";

const cursor = START * 1000;

/** Two tabs, of which the first one leads. */
async function twoTabs() {
  const world = new World();
  const leader = await world.tab();
  const socket = await world.connect([item("a", "a")]);
  const follower = await world.tab();
  return { world, leader, follower, socket };
}

/** A tab that can be put to sleep, and whose database takes the time that the test says, before it
 * does something and before it says so. */
async function slowTab(world: World) {
  const listeners: (readonly [string, (event: Event) => void])[] = [];
  const slow = { before: atOnce, after: atOnce, happen };
  const store: Database = {
    durable: true,
    transact: async (...args) => {
      await slow.before();
      const result = await world.database.transact(...args);
      await slow.after();
      return result;
    },
    close() {},
  };
  const listen = (type: string, listener: (event: Event) => void) => {
    listeners.push([type, listener]);
    return () => {};
  };
  async function happen(type: string): Promise<void> {
    for (const [heard, listener] of listeners) if (heard === type) listener(new Event(type));
    await world.settled();
  }
  const gregor = await world.tab({ store, environment: { ...world.environment(), listen } });
  return { slow, gregor };
}

const atOnce = async (): Promise<void> => {};
const never = (): Promise<void> => new Promise(() => {});

/** What has to be released before it goes on. */
function held() {
  const releases: (() => void)[] = [];
  return {
    wait: () => new Promise<void>((resolve) => releases.push(resolve)),
    async release(world: World) {
      for (let release; (release = releases.shift()); await world.settled()) release();
    },
  };
}

const heard = (gregor: Gregor, type: "created" | "dismissed" | "out_of_band" | "synced" | "offline" | "erased" | "write_rejected") => {
  const listener = vi.fn();
  gregor.on(type, listener);
  return listener;
};

test("one tab is connected, and the others are online through it", async () => {
  const { world, leader, follower } = await twoTabs();
  expect(world.sockets).toHaveLength(1);
  expect(texts(follower)).toEqual(["a"]);
  expect(follower.status).toEqual(leader.status);
  expect(follower.status).toMatchObject({ online: true, synced: true });
  expect(follower.deviceId).toBe(leader.deviceId);
});

test("a tab that has not heard how the leader is connected knows it a second later", async () => {
  const { world, leader, follower, socket } = await twoTabs();
  world.losesBroadcasts = true; // as for one that was kept for the way back
  socket.end();
  await world.settled();
  expect(follower.status.online).toBe(true);
  world.losesBroadcasts = false;
  await world.advance(1_000);
  expect(leader.status.online).toBe(false);
  expect(follower.status).toEqual(leader.status);
});

/** A database that holds back what it answers, while it is told so. */
function slowDatabase(database: Database) {
  let isHeld = false;
  const held: (() => void)[] = [];
  return {
    hold: () => (isHeld = true),
    release() {
      isHeld = false;
      for (const answer of held.splice(0)) answer();
    },
    database: {
      ...database,
      async transact<T>(keys: readonly string[] | undefined, decide: Decision<T>): Promise<T> {
        const result = await database.transact(keys, decide);
        if (isHeld) await new Promise<void>((resolve) => held.push(resolve));
        return result;
      },
    },
  };
}

/** Two tabs, of which the first one, which leads, has missed that the second one wrote "b". */
async function leaderThatMissed() {
  const world = new World();
  const slow = slowDatabase(world.database);
  const leader = await world.tab({ store: slow.database });
  const socket = await world.connect([item("a", "a")]);
  const follower = await world.tab();
  world.losesBroadcasts = true;
  await follower.put("b", "b", { msgId: "b" });
  world.losesBroadcasts = false;
  return { world, slow, leader, follower, socket };
}

test("the leader sends in the order of writing, also what it has heard in another order", async () => {
  const { world, follower, socket } = await leaderThatMissed();
  await follower.put("c", "c", { msgId: "c" });
  await world.settled();
  expect(socket.last.type).not.toBe("consume");
  await world.advance(1_000);
  expect(socket.last.messages.map(({ msg_id }: Message) => msg_id)).toEqual(["b", "c"]);
});

test("what is saved while the store is read again stays", async () => {
  const { world, slow, leader, follower } = await leaderThatMissed();
  await follower.put("c", "c", { msgId: "c" });
  slow.hold();
  await world.advance(1_000); // reads the store
  const saved = leader.put("d", "d", { msgId: "d" });
  await world.settled();
  slow.release();
  await saved;
  await world.settled();
  expect(texts(leader)).toEqual(["a", "b", "c", "d"]);
});

test("an item that is heard of while the store is read again is created once", async () => {
  const { world, slow, leader, follower } = await leaderThatMissed();
  const created = heard(leader, "created");
  const dismissed = heard(leader, "dismissed");
  slow.hold();
  await world.advance(2_000); // hears that it has missed something, and reads the store
  await follower.put("c", "c", { msgId: "c" });
  await world.settled();
  slow.release();
  await world.settled();
  expect(created.mock.calls.map(([{ item }]) => item.body).sort()).toEqual(["b", "c"]);
  expect(dismissed).not.toHaveBeenCalled();
});

test("what is hidden stays so in a tab that hears of it before it hears of the item", async () => {
  const { world, follower, socket } = await twoTabs();
  const environment = world.environment();
  const Channels = environment.BroadcastChannel!;
  let isHeld = true;
  const late: (() => void)[] = [];
  const BroadcastChannel = class implements Channel {
    onmessage: Channel["onmessage"] = null;
    private readonly _channel: Channel;
    constructor(name: string) {
      this._channel = new Channels(name);
      this._channel.onmessage = (event) => {
        const hear = () => this.onmessage?.(event);
        if (isHeld) late.unshift(hear);
        else hear();
      };
    }
    postMessage(message: unknown): void {
      this._channel.postMessage(message);
    }
    close(): void {
      this._channel.close();
    }
  };
  const third = await world.tab({ environment: { ...environment, BroadcastChannel } });
  socket.say(stored("b", cursor, cursor + 1, { creation: { category: "mail", body: "b" } }));
  await world.settled();
  await follower.hide("b");
  await world.settled();
  isHeld = false;
  for (const hear of late) hear();
  await world.advance(1_000);
  expect(texts(third)).toEqual(["a"]);
});

test("what the node says is in all tabs, with its events", async () => {
  const { world, follower, socket } = await twoTabs();
  const created = heard(follower, "created");
  const dismissed = heard(follower, "dismissed");
  const outOfBand = heard(follower, "out_of_band");
  socket.say(
    stored("k1", cursor, cursor + 1, { creation: { category: "theme", body: "light", key: "theme" } }),
    stored("k2", cursor + 1, cursor + 2, { creation: { category: "theme", body: "dark", key: "theme" } }),
    stored("d", cursor + 2, cursor + 3, { dismissal: { msg_ids: ["a"] } }),
    { type: "out_of_band", system: "typing", body: 7 },
  );
  await world.settled();
  expect(texts(follower)).toEqual(["dark"]);
  expect(created.mock.calls.map(([{ item }]) => item.body)).toEqual(["light", "dark"]);
  expect(dismissed.mock.calls.map(([{ item, why }]) => [item.body, why])).toEqual([
    ["light", "replaced"],
    ["a", "dismissed"],
  ]);
  expect(outOfBand).toHaveBeenCalledWith({ type: "out_of_band", system: "typing", body: 7 });
});

test("what a follower writes shows in all tabs at once, and is sent by the leader", async () => {
  const { world, leader, follower, socket } = await twoTabs();
  await follower.put("b", "b", { msgId: "m" });
  await world.settled();
  expect(texts(leader)).toEqual(["a", "b"]);
  expect(socket.last).toMatchObject({ type: "consume", messages: [{ msg_id: "m" }] });
  expect(follower.status.unsent).toBe(1);
  const flushed = follower.flush();
  socket.say(ack(1, { status: "stored", msg_id: "m", ctime: cursor + 5, visible: true }));
  await flushed;
  expect(follower.status).toEqual(leader.status);
});

test("a rejected write is reported in the tab that wrote it, too", async () => {
  const { world, follower, socket } = await twoTabs();
  const rejected = heard(follower, "write_rejected");
  await follower.put("b", "b", { msgId: "m" });
  await world.settled();
  socket.say(ack(1, { status: "rejected", error: { code: "invalid", action: "stop", message: "no" } }));
  await world.settled();
  expect(rejected).toHaveBeenCalledTimes(1);
  expect(texts(follower)).toEqual(["a"]);
  expect(follower.rejected()).toHaveLength(1);
});

test("writes of several tabs at the same time are all kept, in one order", async () => {
  const { world, leader, follower } = await twoTabs();
  const third = await world.tab();
  const tabs = [leader, follower, third];
  await Promise.all(Array.from({ length: 60 }, (_, n) => tabs[n % 3]!.create("n", n)));
  await world.advance(5_000);
  for (const tab of tabs) {
    expect(new Set(texts(tab))).toEqual(new Set(["a", ...Array.from({ length: 60 }, (_, n) => n)]));
    expect(tab.replica.unsent()).toEqual(leader.replica.unsent());
  }
});

test("an out-of-band message of a follower goes through the leader", async () => {
  const { world, follower, socket } = await twoTabs();
  const sent = follower.outOfBand("typing", 1);
  await world.settled();
  expect(socket.last.messages).toEqual([{ uid: "alice", system: "typing", body: 1 }]);
  socket.say(ack(1, { status: "relayed", uid: "alice" }));
  await sent;
  const refused = expect(follower.outOfBand("typing", 2)).rejects.toMatchObject({ code: "invalid" });
  await world.settled();
  socket.say(ack(2, { status: "rejected", error: { code: "invalid", action: "stop", message: "no" } }));
  await refused;
  socket.end();
  await world.settled();
  await expect(follower.outOfBand("typing", 3)).rejects.toMatchObject({ code: "unavailable" });
});

test("a follower is offline with the leader, and can ask it to connect", async () => {
  const { world, leader, follower, socket } = await twoTabs();
  const offline = heard(follower, "offline");
  socket.end();
  await world.settled();
  expect(offline).toHaveBeenCalledTimes(1);
  expect(follower.status).toEqual(leader.status);
  expect(follower.status.retryAt).not.toBeNull();
  follower.reconnect();
  await world.settled();
  expect(world.sockets).toHaveLength(2);
});

test("a follower that becomes visible makes the leader look", async () => {
  const { world } = await twoTabs();
  const listeners: ((event: Event) => void)[] = [];
  const listen = (type: string, listener: (event: Event) => void) => {
    if (type === "visibilitychange") listeners.push(listener);
    return () => {};
  };
  await world.tab({ environment: { ...world.environment(), listen } });
  await world.advance(60_000);
  for (const listener of listeners) listener(new Event("visibilitychange"));
  await world.settled();
  expect(world.socket.last).toMatchObject({ type: "verify" });
});

describe("when the leader ends", () => {
  test("another tab connects, from the cursor that it has", async () => {
    const { world, leader, follower, socket } = await twoTabs();
    await follower.put("b", "unsent", { msgId: "m" });
    await leader.close();
    await world.settled();
    expect(socket.isClosed).toBe(true);
    expect(world.sockets).toHaveLength(2);
    world.socket.open();
    await world.settled();
    expect(world.socket.sent[0]).toMatchObject({ cursor, epoch: 0, device_id: follower.deviceId });
    await world.connect([item("a", "a")]);
    expect(follower.status).toMatchObject({ online: true, synced: true });
    expect(world.socket.last.messages).toMatchObject([{ msg_id: "m" }]);
  });

  test("a later tab finds what was saved", async () => {
    const { world, leader, follower } = await twoTabs();
    await follower.put("b", "b");
    await leader.close();
    await follower.close();
    expect(texts(await world.tab())).toEqual(["a", "b"]);
  });
});

test("an erase is in all tabs, and so is the new life", async () => {
  const { world, leader, follower, socket } = await twoTabs();
  const erased = heard(follower, "erased");
  socket.say({ type: "erased", epoch: cursor + 9, uid: "alice" });
  await world.settled();
  expect(erased).toHaveBeenCalledWith({ type: "erased", epoch: cursor + 9 });
  expect(texts(follower)).toEqual([]);
  await expect(follower.put("b", 1)).rejects.toMatchObject({ code: "erased" });
  await expect(follower.waitSynced()).rejects.toMatchObject({ code: "erased" });
  follower.reconnect();
  await world.settled();
  await follower.put("b", "new");
  await world.settled();
  expect(texts(leader)).toEqual(["new"]);
  expect(world.sockets).toHaveLength(2);
});

test("a logout is one of all tabs", async () => {
  const { world, leader, follower } = await twoTabs();
  await leader.put("b", "unsent");
  await world.settled();
  const dismissed = heard(leader, "dismissed");
  expect(await follower.logout()).toHaveLength(1);
  await world.settled();
  expect(texts(leader)).toEqual([]);
  expect(dismissed).toHaveBeenCalledTimes(2);
  await expect(leader.put("c", 1)).rejects.toMatchObject({ code: "unavailable" });
  expect(texts(await world.tab())).toEqual([]);
});

/** A tab that hears nothing of the others. */
const deaf = (world: World) => ({
  ...world.environment(),
  BroadcastChannel: class implements Channel {
    onmessage = null;
    postMessage(): void {}
    close(): void {}
  },
});

test("tabs that open an empty store at once are one device", async () => {
  const world = new World();
  const open = () => world.tab({ environment: deaf(world) });
  const [one, two] = await Promise.all([open(), open()]);
  expect(two?.deviceId).toBe(one?.deviceId);
});

describe("a tab that opens while it waits for the store's answer", () => {
  /** One that has read what the first tab showed, and does not have the answer. */
  async function openingTab() {
    const world = new World();
    const first = await world.tab();
    await world.connect([item("a", "a")]);
    const answer = held();
    const transact: Database["transact"] = async (keys, ...decision) => {
      const result = await world.database.transact(keys, ...decision);
      if (!keys) await answer.wait();
      return result;
    };
    const opening = await world.tab({ store: { ...world.database, transact } });
    return { first, opening, answered: () => answer.release(world) };
  }

  test("shows nothing that another one has hidden meanwhile, not even for a moment", async () => {
    const { first, opening, answered } = await openingTab();
    const shown = new Set<unknown>();
    opening.subscribe(() => texts(opening).forEach((text) => shown.add(text)));
    await first.hide("a");
    await answered();
    await opening.ready;
    expect([...shown, ...texts(opening)]).toEqual([]);
  });

  test("shows nothing after a logout, and ends", async () => {
    const { first, opening, answered } = await openingTab();
    await first.logout();
    await answered();
    expect(texts(opening)).toEqual([]);
    await expect(opening.put("b", 1)).rejects.toMatchObject({ code: "unavailable" });
  });
});

describe("a tab that has not heard yet that all was wiped", () => {
  test("writes nothing for a user who was erased", async () => {
    const world = new World();
    const leader = await world.tab();
    const socket = await world.connect();
    const follower = await world.tab({ environment: deaf(world) });
    socket.say({ type: "erased", epoch: cursor + 9, uid: "alice" });
    await world.settled();
    await expect(follower.put("b", 1)).rejects.toMatchObject({ code: "erased" });
    leader.reconnect();
    await world.connect();
    expect(world.socket.sent.filter(({ type }) => type === "consume")).toEqual([]);
  });

  test("leaves nothing behind a logout", async () => {
    const world = new World();
    const leader = await world.tab();
    const follower = await world.tab({ environment: deaf(world) });
    await leader.logout();
    await expect(follower.put("b", 1)).rejects.toMatchObject({ code: "erased" });
    await follower.close();
    expect(texts(await world.tab())).toEqual([]);
  });
});

test("where a browser has no locks, each tab has its own connection", async () => {
  const world = new World();
  const environment = { ...world.environment(), locks: undefined };
  const first = await world.tab({ environment });
  await world.connect();
  const second = await world.tab({ environment });
  await world.connect();
  expect(world.sockets).toHaveLength(2);
  expect([first.status.online, second.status.online]).toEqual([true, true]);
  await first.put("a", 1);
  await second.put("b", 2);
});

test("what is written while the store is read again is not lost", async () => {
  const { world, leader } = await twoTabs();
  const { slow, gregor } = await slowTab(world);
  await slow.happen("pagehide");
  await leader.create("m", "x");
  const answers = held();
  slow.after = answers.wait;
  await slow.happen("pageshow");
  const written = [gregor.create("m", "y"), gregor.create("m", "z")];
  await world.settled();
  await answers.release(world);
  await Promise.all(written);
  await world.advance(1_000);
  for (const tab of [leader, gregor]) expect(texts(tab)).toEqual(["a", "x", "y", "z"]);
});

describe("a logout", () => {
  test("gives back what another tab has just written", async () => {
    const { world, leader } = await twoTabs();
    const { slow, gregor } = await slowTab(world);
    const answers = held();
    slow.after = answers.wait;
    const written = gregor.create("m", "x", { msgId: "m" });
    await world.settled();
    expect(await leader.logout()).toMatchObject([{ msg_id: "m" }]);
    await answers.release(world);
    await written;
    expect(texts(gregor)).toEqual([]);
  });

  test("refuses what another tab writes before it has heard of it, though that tab then crashes", async () => {
    const { world, leader } = await twoTabs();
    const { slow, gregor } = await slowTab(world);
    const steps = held();
    slow.before = steps.wait;
    const refused = expect(gregor.create("m", "x")).rejects.toMatchObject({ code: "erased" });
    await world.settled();
    slow.before = never;
    await leader.logout();
    await steps.release(world);
    await refused;
    const next = await world.tab();
    expect(next.status).toMatchObject({ unsent: 0, lastError: null });
    expect(texts(next)).toEqual([]);
  });

  test("is one of a page, too, that was kept for the way back", async () => {
    const { world, leader } = await twoTabs();
    const { slow, gregor } = await slowTab(world);
    await slow.happen("pagehide");
    await leader.logout();
    const { length } = world.sockets;
    await slow.happen("pageshow");
    await world.advance(10_000);
    expect(texts(gregor)).toEqual([]);
    await expect(gregor.put("b", 1)).rejects.toMatchObject({ code: "unavailable" });
    expect(world.sockets).toHaveLength(length);
  });
});

test("a client that opens after a logout can write at once", async () => {
  const { world, leader } = await twoTabs();
  await leader.logout();
  const options = { url: "https://example.com/gregor/", user: "alice", token: "t" };
  const gregor = createGregor({ ...options, store: world.database, environment: world.environment() });
  await gregor.create("m", "x");
  await gregor.close();
  expect(texts(await world.tab())).toEqual(["x"]);
});

test.each(["before", "after"] as const)(
  "what another tab saves just %s an erase does not come into the new life",
  async (when) => {
    const { world, leader, socket } = await twoTabs();
    const { slow, gregor } = await slowTab(world);
    const steps = held();
    slow[when === "before" ? "after" : "before"] = steps.wait;
    gregor.create("m", "old").catch(() => {});
    await world.settled();
    slow.before = slow.after = atOnce;
    socket.say({ type: "erased", epoch: cursor + 9, uid: "alice" });
    await world.settled();
    await steps.release(world);
    await world.advance(1_000);
    leader.reconnect();
    await leader.close();
    await gregor.close();
    const next = await world.tab();
    for (const tab of [leader, gregor, next]) expect(texts(tab)).toEqual([]);
    expect(next.status.unsent).toBe(0);
  },
);

test("a clock that is set back takes nothing away, though another tab has written since", async () => {
  const world = new World();
  const leader = await world.tab();
  await world.connect([item("a", "a", { starts_at: cursor + 1_000_000 })]);
  const follower = await world.tab();
  await world.advance(60_000);
  world.ahead = -3_600_000;
  await world.advance(20_000);
  await follower.put("b", "b");
  await world.advance(20_000);
  for (const tab of [leader, follower]) expect(texts(tab)).toEqual(["a", "b"]);
});

test("what two tabs write goes to the node in one order, and is shown until it is there", async () => {
  const { world, leader, socket } = await twoTabs();
  const { slow, gregor } = await slowTab(world);
  const answers = held();
  slow.after = answers.wait;
  const written = gregor.create("m", "first", { msgId: "m1" });
  await world.settled();
  slow.after = atOnce;
  await leader.create("m", "second", { msgId: "m2" });
  await world.settled();
  await answers.release(world);
  await written;
  await world.advance(1_000); // the leader, which saved before it heard of the first one, reads again
  const sent = socket.sent.filter(({ type }) => type === "consume").flatMap(({ messages }) => messages);
  expect(sent.map(({ msg_id }) => msg_id)).toEqual(["m1", "m2"]);
  for (const tab of [leader, gregor]) expect(texts(tab)).toEqual(["a", "first", "second"]);
});

test("the id of an item that ends while another tab hides it is forgotten when the store is opened", async () => {
  const { world, leader, socket } = await twoTabs();
  const { slow, gregor } = await slowTab(world);
  const steps = held();
  slow.before = steps.wait;
  const hidden = gregor.hide("a");
  await world.settled();
  socket.say(stored("d", cursor, cursor + 1, { dismissal: { msg_ids: ["a"] } }));
  await world.settled();
  slow.before = atOnce;
  await steps.release(world);
  await hidden;
  for (const tab of [leader, gregor]) await tab.close();
  await (await world.tab()).create("m", 1);
  const kinds = await world.database.transact(undefined, (stored) => [...stored.keys()].map((key) => key.split("/")[0]));
  expect(kinds).not.toContain("hidden");
});
