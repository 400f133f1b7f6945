/** How a device stays connected, whatever the network, the node and the app's functions do. */

import { describe, expect, test, vi } from "vitest";
import type { Database } from "../src/stores/store.js";
import { START, World, ack, item, problem, snapshot, stored, texts, welcome } from "./fakes/world.js";

const MINUTE = 60_000;

describe("an attempt", () => {
  test("that succeeds greets, syncs, and sends what waits", async () => {
    const world = new World();
    const gregor = await world.tab({ deviceId: "phone" });
    await gregor.put("theme", "dark", { msgId: "m" });
    world.socket.open();
    await world.settled();
    expect(world.socket.sent).toMatchObject([{ type: "hello", token: "t", device_id: "phone", protocol: 2 }]);
    world.socket.say(welcome(START));
    await world.settled();
    expect(world.socket.last).toMatchObject({ type: "consume", n: 1, messages: [{ uid: "alice", msg_id: "m" }] });
    expect(gregor.status).toMatchObject({ online: false, unsent: 1 });
    world.socket.say(ack(1, { status: "stored", uid: "alice", msg_id: "m", ctime: START * 1000 + 5, visible: true }));
    world.socket.say(snapshot([item("a", 1)], START));
    await world.settled();
    expect(gregor.status).toEqual({
      online: true,
      synced: true,
      durable: true,
      unsent: 0,
      lastError: null,
      retryAt: null,
      setAside: 0,
    });
    expect(texts(gregor)).toEqual([1, "dark"]);
  });

  test.each([
    ["no connection", () => {}, "in time", 10_000],
    ["no welcome", (world: World) => void world.socket.open(), "in time", 10_000],
    ["no sync", (world: World) => void world.socket.open().say(welcome(START)), "in time", 10_000],
    ["a frame that is none", (world: World) => world.socket.open().onmessage!({ data: "<html>" }), "no JSON"],
    ["an end", (world: World) => world.socket.open().end(4003, "this origin is not allowed"), "this origin is not allowed"],
    ["an error", (world: World) => void world.socket.open().say(problem("internal", "retry", "a defect")), "a defect"],
    ["a later protocol", (world: World) => void world.socket.open().say(problem("protocol", "stop", "speak 3")), "speak 3"],
  ])("that gives %s is followed by the next, and the status says why", async (_, happen, reason, after = 0) => {
    const world = new World();
    const gregor = await world.tab();
    const offline = vi.fn();
    gregor.on("offline", offline);
    for (let attempt = 1; attempt <= 2; attempt++) {
      happen(world);
      await world.advance(after);
      expect(gregor.status.lastError?.message).toContain(reason);
      expect(world.sockets).toHaveLength(attempt);
      gregor.reconnect();
      await world.settled();
    }
    expect(offline).toHaveBeenCalledTimes(1);
    await gregor.put("still", "works");
    expect(gregor.status.unsent).toBe(1);
  });

  test("waits as the backoff says, and not while somebody asks to reconnect", async () => {
    const world = new World();
    const gregor = await world.tab();
    world.socket.end();
    await world.settled();
    expect(gregor.status.retryAt).toBe((START + 250) * 1000);
    await world.advance(249);
    expect(world.sockets).toHaveLength(1);
    gregor.reconnect();
    await world.settled();
    expect(world.sockets).toHaveLength(2);
    expect(gregor.status.retryAt).toBeNull();
  });

  test("after a goaway comes within the time that the node has said", async () => {
    const world = new World();
    await world.tab();
    const socket = await world.connect();
    socket.say({ type: "goaway", reconnect_after_ms: 8_000 });
    await world.advance(3_999);
    expect(world.sockets).toHaveLength(1);
    await world.advance(2);
    expect(world.sockets).toHaveLength(2);
  });

  test("is made without an epoch after a node has refused one", async () => {
    const world = new World();
    await world.tab();
    (await world.connect()).end();
    await world.advance(1_000);
    world.socket.open();
    await world.settled();
    expect(world.socket.last).toMatchObject({ type: "hello", epoch: 0 });
    world.socket.say(problem("protocol", "stop"));
    await world.advance(1_000);
    world.socket.open();
    await world.settled();
    expect(world.socket.last).not.toHaveProperty("epoch");
  });
});

describe("an erase that a slow store saves after the device has woken up", () => {
  test.each([
    ["waits for its token", () => {}, false],
    ["connects", () => {}, true],
    ["has said hello", (world: World) => void world.socket.open(), true],
    ["waits for its next attempt", (world: World) => world.socket.end(1006, "no node"), true],
  ])("stops a client that %s", async (_, happen, isTokenGiven) => {
    const world = new World();
    let saving = Promise.resolve();
    let saved = (): void => {};
    const { database } = world;
    const store: Database = { ...database, transact: async (...args) => (await saving, database.transact(...args)) };
    const tokens: (string | Promise<string>)[] = ["t"];
    const gregor = await world.tab({ store, token: () => tokens.shift()! });
    const final = vi.fn();
    gregor.on("offline", (event) => event.final && final());
    const socket = await world.connect();
    saving = new Promise((resolve) => (saved = resolve));
    socket.end(4010, "erased");
    await world.settled();
    let giveToken = (_: string): void => {};
    tokens.push(isTokenGiven ? "t" : new Promise((resolve) => (giveToken = resolve)));
    world.ahead += 60 * MINUTE;
    await world.advance(10_000);
    happen(world);
    await world.settled();
    saved();
    await world.settled();
    giveToken("t");
    const { length } = world.sockets;
    expect(length).toBe(isTokenGiven ? 2 : 1);
    await world.advance(60 * MINUTE);
    expect(world.sockets).toHaveLength(length);
    expect(gregor.status).toMatchObject({ online: false, retryAt: null, lastError: { code: "erased" } });
    expect(final).toHaveBeenCalledTimes(1);
    await expect(gregor.waitSynced()).rejects.toMatchObject({ code: "erased" });
  });
});

describe("a token function", () => {
  test.each([
    ["throws", () => { throw Error("logged out"); }, "logged out"],
    ["rejects", () => Promise.reject(Error("the login service is down")), "login service is down"],
    ["hangs", () => new Promise<string>(() => {}), "did not answer in time"],
    ["gives no text", () => undefined as never, "no text"],
  ])("that %s is called again later", async (_, token, reason) => {
    const world = new World();
    let calls = 0;
    const gregor = await world.tab({ token: () => (++calls < 3 ? token() : "t") });
    await world.advance(10_001);
    expect(gregor.status.lastError?.message).toContain(reason);
    await world.advance(25_000);
    await world.connect();
    expect(gregor.status).toMatchObject({ online: true, lastError: null });
  });

  test("that answers a client that is closed makes it connect no more", async () => {
    const world = new World();
    let answer = (_: string): void => {};
    const gregor = await world.tab({ token: () => new Promise((resolve) => (answer = resolve)) });
    await gregor.close();
    answer("t");
    await world.settled();
    expect(world.sockets).toHaveLength(0);
  });

  test("that returns what has expired is called again later", async () => {
    const world = new World();
    const tokens = ["old", "new"];
    const gregor = await world.tab({ token: () => tokens.shift()! });
    world.socket.open().say(problem("unauthenticated", "reauthenticate", "the token has expired"));
    await world.settled();
    expect(gregor.status.lastError).toMatchObject({ code: "unauthenticated" });
    expect(gregor.status.retryAt).not.toBeNull();
    await world.advance(1_000);
    world.socket.open();
    await world.settled();
    expect(world.socket.last.token).toBe("new");
  });
});

describe.each([
  ["unauthenticated", problem("unauthenticated", "reauthenticate"), true],
  ["forbidden", problem("forbidden", "stop"), true],
  ["not-yet-valid", problem("not-yet-valid", "retry"), false],
  ["unavailable", problem("unavailable", "retry"), false],
  ["of a later version", problem("unheard-of", "stop"), false],
  ["the welcome of another user", welcome(START, "mallory"), true],
])("a refusal: %s", (_, frame, isFinal) => {
  test.each([
    ["a token that is always the same", "t", isFinal],
    ["a token function", () => "t", false],
  ])("of %s", async (_, token, stops) => {
    const world = new World();
    const gregor = await world.tab({ token });
    await gregor.put("theme", "dark");
    const flushed = gregor.flush().catch((error) => error.code);
    world.socket.open().say(frame);
    await world.advance(3_600_000);
    expect(world.sockets.length === 1).toBe(stops);
    expect(gregor.status).toMatchObject({ online: false, unsent: 1 });
    expect(world.sockets.flatMap(({ sent }) => sent)).not.toContainEqual(expect.objectContaining({ type: "consume" }));
    const before = world.sockets.length;
    if (stops) {
      expect(await flushed).toBe(gregor.status.lastError?.code);
      gregor.reconnect();
    }
    while (world.sockets.length === before) await world.advance(1_000);
    await world.connect();
    expect(gregor.status.online).toBe(true);
  });
});

describe("a device that wakes up", () => {
  test.each(["online", "visibilitychange"])("connects at once: %s", async (type) => {
    const world = new World();
    const token = vi.fn(() => "t");
    const gregor = await world.tab({ token });
    for (let n = 1; n < 20; n++) {
      if (gregor.status.retryAt === null) world.socket.end();
      await world.settled();
      await world.happen(type);
      expect(token).toHaveBeenCalledTimes(n + 1);
    }
  });

  test("does not connect because it becomes invisible", async () => {
    const world = new World();
    await world.tab();
    world.socket.end();
    await world.settled();
    world.isVisible = false;
    await world.happen("visibilitychange");
    expect(world.sockets).toHaveLength(1);
  });

  test("does not try again what is refused for good", async () => {
    const world = new World();
    await world.tab();
    world.socket.open().say(problem("unauthenticated", "reauthenticate"));
    await world.settled();
    await world.happen("online");
    expect(world.sockets).toHaveLength(1);
  });

  test("notices a dead connection in ten seconds", async () => {
    const world = new World();
    const gregor = await world.tab();
    const socket = await world.connect();
    await world.advance(MINUTE);
    await world.happen("visibilitychange");
    expect(socket.last).toEqual({ type: "verify", cursor: START * 1000 });
    expect(gregor.status.synced).toBe(false);
    await world.advance(10_001);
    expect(socket.isClosed).toBe(true);
    expect(gregor.status.online).toBe(false);
  });

  test("keeps a connection that answers", async () => {
    const world = new World();
    const gregor = await world.tab();
    const socket = await world.connect();
    await world.advance(MINUTE);
    await world.happen("online");
    const cursor = START * 1000;
    socket.say({ ...snapshot([], START + MINUTE, cursor), mode: "changes", prev: cursor });
    await world.advance(20_000);
    expect(world.sockets).toHaveLength(1);
    expect(gregor.status).toMatchObject({ online: true, synced: true });
  });

  test("connects again after its clock has jumped", async () => {
    const world = new World();
    await world.tab();
    const socket = await world.connect();
    world.ahead = 600_000; // the monotonic clock stood still
    await world.advance(10_000);
    expect(socket.isClosed).toBe(true);
    expect(world.sockets).toHaveLength(2);
  });

  test("connects again after its timers have stood still", async () => {
    const world = new World();
    await world.tab();
    const socket = await world.connect();
    world.clock.now += 600_000;
    await world.settled();
    expect(socket.isClosed).toBe(true);
    expect(world.sockets).toHaveLength(2);
  });

  test("asks after a long silence, as a browser sends no pings, if somebody looks", async () => {
    const world = new World();
    world.isVisible = false;
    await world.tab();
    const socket = await world.connect();
    await world.advance(10 * MINUTE);
    expect(socket.sent).toHaveLength(1);
    world.isVisible = true;
    await world.advance(5 * MINUTE);
    expect(socket.sent[1]).toMatchObject({ type: "verify" });
  });
});

describe("the outbox", () => {
  test("is sent again after a consume that was not acknowledged", async () => {
    const world = new World();
    const gregor = await world.tab();
    const first = await world.connect();
    await gregor.put("a", 1, { msgId: "m" });
    expect(first.last).toMatchObject({ type: "consume", n: 1 });
    await world.advance(60_001);
    await world.advance(1_000);
    const second = await world.connect();
    expect(second.sent.map(({ type }) => type)).toEqual(["hello", "consume"]);
    expect(second.last.messages[0].msg_id).toBe("m");
  });

  test("is sent one consume at a time", async () => {
    const world = new World();
    const gregor = await world.tab();
    const socket = await world.connect();
    await gregor.put("a", 1, { msgId: "m1" });
    await gregor.put("b", 2, { msgId: "m2" });
    expect(socket.last.messages).toHaveLength(1);
    socket.say(ack(1, { status: "stored", uid: "alice", msg_id: "m1", ctime: START * 1000 + 5 }));
    await world.settled();
    expect(socket.last).toMatchObject({ n: 2, messages: [{ msg_id: "m2" }] });
  });

  test("waits after a consume that was deferred, longer each time", async () => {
    const world = new World();
    const gregor = await world.tab();
    const socket = await world.connect();
    await gregor.put("a", 1);
    const waits = [];
    for (let time = 1; time <= 4; time++) {
      const sent = socket.sent.length;
      socket.say({ ...problem("unavailable", "retry"), n: 1 });
      const before = world.clock.now;
      while (socket.sent.length === sent) await world.advance(10);
      expect(socket.last).toMatchObject({ type: "consume", n: 1 }); // the node takes no other number
      waits.push(world.clock.now - before);
    }
    expect(waits[0]).toBe(250);
    expect(waits.at(-1)).toBeGreaterThan(500);
    expect(world.sockets).toHaveLength(1);
  });

  test("sends what is refused for a while again after what the node asks for, and nothing before it", async () => {
    const world = new World();
    const gregor = await world.tab();
    const socket = await world.connect();
    await gregor.put("a", 1, { msgId: "m1" });
    const sent = socket.sent.length;
    const refusal = { limit: "messages_per_second", maximum: 1, retry_after_ms: 3000 };
    socket.say({ ...problem("limit", "retry"), n: 1, ...refusal });
    await gregor.put("b", 2, { msgId: "m2" });
    await world.advance(2990);
    expect(socket.sent).toHaveLength(sent);
    await world.advance(1000);
    expect(socket.sent).toHaveLength(sent + 1);
    expect(socket.last).toMatchObject({ n: 1, messages: [{ msg_id: "m1" }, { msg_id: "m2" }] });
  });

  test("a device that is refused for a while connects again after what the node asks for", async () => {
    const world = new World();
    const gregor = await world.tab();
    const refusal = { limit: "connections", maximum: 1, retry_after_ms: 5000 };
    world.socket.open().say({ ...problem("limit", "retry"), ...refusal });
    await world.settled();
    expect(gregor.status.lastError).toMatchObject({ code: "limit", ...refusal });
    expect(gregor.status.retryAt! / 1000 - world.clock.now).toBeGreaterThanOrEqual(5000);
  });

  test("finds the one message that makes a consume unacceptable", async () => {
    const world = new World();
    const gregor = await world.tab();
    await Promise.all([1, 2, 3, 4, 5].map((n) => gregor.create("n", n, { msgId: `m${n}` })));
    const rejected: string[] = [];
    gregor.on("write_rejected", ({ message }) => rejected.push(message.msg_id));
    const socket = await world.connect();
    for (let n = 1; gregor.status.unsent; n++) {
      const { messages } = socket.last;
      const isBad = messages.some(({ msg_id }: { msg_id: string }) => msg_id === "m4");
      const stored = messages.map((message: any, k: number) => ({ status: "stored", msg_id: message.msg_id, ctime: START * 1000 + 10 * n + k + 1 }));
      socket.say(isBad ? { ...problem("too-large", "stop"), n } : ack(n, ...stored));
      await world.settled();
    }
    expect(rejected).toEqual(["m4"]);
    expect(texts(gregor)).toEqual([1, 2, 3, 5]);
  });

  test("an out-of-band message is sent at most once", async () => {
    const world = new World();
    const gregor = await world.tab();
    await expect(gregor.outOfBand("typing", 1)).rejects.toMatchObject({ code: "unavailable" });
    const socket = await world.connect();
    const lost = expect(gregor.outOfBand("typing", 2)).rejects.toMatchObject({ code: "unavailable" });
    expect(socket.last.messages).toEqual([{ uid: "alice", system: "typing", body: 2 }]);
    socket.end();
    await lost;
    await world.advance(1_000);
    const next = await world.connect();
    expect(next.sent).toHaveLength(1);
    const sent = gregor.outOfBand("typing", 3);
    next.say(ack(1, { status: "relayed", uid: "alice" }));
    await sent;
    const refused = expect(gregor.outOfBand("typing", 4)).rejects.toMatchObject({ code: "invalid" });
    next.say(ack(2, { status: "rejected", error: { code: "invalid", message: "no", action: "stop" } }));
    await refused;
  });
});

test("a gap is noticed, and what was missed comes", async () => {
  const world = new World();
  const gregor = await world.tab();
  const socket = await world.connect();
  const cursor = START * 1000;
  socket.say(stored("b", cursor + 1, cursor + 2, { creation: { category: "mail", body: "lost" } }));
  await world.settled();
  expect(texts(gregor)).toEqual([]);
  expect(socket.last).toEqual({ type: "verify", cursor });
});

test("frames that came before the end of a connection count", async () => {
  const world = new World();
  const gregor = await world.tab();
  const socket = await world.connect();
  const cursor = START * 1000;
  socket.say(stored("b", cursor, cursor + 2, { creation: { category: "mail", body: "here" } }));
  socket.end();
  await world.settled();
  expect(texts(gregor)).toEqual(["here"]);
});
