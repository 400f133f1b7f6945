import fc from "fast-check";
import { afterEach, expect, test, vi } from "vitest";
import type { Gregor, GregorEvent } from "../src/client.js";
import { GregorError } from "../src/errors.js";
import { TestServer } from "../src/testing/index.js";

const HOUR = 3_600_000;
const opened: Gregor[] = [];

afterEach(async () => {
  await Promise.all(opened.splice(0).map((gregor) => gregor.close()));
});

/** Devices of alice, and the server that they are connected to. */
async function devices(server: TestServer, ...ids: string[]) {
  const all = ids.map((id) => server.device("alice", id));
  for (const device of all) opened.push(await device.open());
  return all.map((device, place) => ({ device, gregor: opened.at(place - all.length) as Gregor }));
}

const bodies = (gregor: Gregor, prefix = "") => gregor.items(prefix).map((item) => item.body);

/** What has happened on a device, by type. */
function heard(gregor: Gregor, ...types: GregorEvent["type"][]): string[] {
  const events: string[] = [];
  for (const type of types) gregor.on(type, () => events.push(type));
  return events;
}

test("what a backend puts is on all devices of the user, and on no others", async () => {
  const server = new TestServer();
  const [phone, laptop] = await devices(server, "phone", "laptop");
  const bobs = await server.device("bob").open();
  opened.push(bobs);
  await server.put("alice", "settings.theme", "dark");
  expect([phone, laptop].map((device) => device?.gregor.get("settings.theme")?.body)).toEqual(["dark", "dark"]);
  expect(bobs.items()).toEqual([]);
  expect(server.items("alice").map((item) => item.body)).toEqual(["dark"]);
});

test("what is done offline is everywhere when the device is online again", async () => {
  const server = new TestServer();
  const [phone, laptop] = await devices(server, "phone", "laptop");
  await server.notify("alice", "likes", { title: "Ann liked your photo" }, { key: "photo7" });
  await phone!.device.goOffline();
  expect(phone!.gregor.status.online).toBe(false);
  await phone!.gregor.inbox.read("photo7");
  expect([phone, laptop].map((device) => device?.gregor.inbox.unreadCount())).toEqual([0, 1]);
  await phone!.device.goOnline();
  expect([phone, laptop].map((device) => device?.gregor.inbox.unreadCount())).toEqual([0, 0]);
  expect(phone!.gregor.status).toMatchObject({ online: true, synced: true, unsent: 0, lastError: null });
});

test("a device that was offline for long is connected as soon as it has a network", async () => {
  const server = new TestServer();
  const [phone] = await devices(server, "phone");
  await phone!.device.goOffline();
  await server.advance(HOUR);
  await server.create("alice", "a", "meanwhile");
  expect(bodies(phone!.gregor)).toEqual([]);
  await phone!.device.goOnline();
  expect(bodies(phone!.gregor)).toEqual(["meanwhile"]);
});

test("a page that is loaded again has what it had, also offline", async () => {
  const server = new TestServer();
  const [phone] = await devices(server, "phone");
  await server.create("alice", "a", "from the server");
  await phone!.device.goOffline();
  await phone!.gregor.create("a", "from here");
  await phone!.gregor.close();
  const again = await phone!.device.open();
  opened.push(again);
  expect(bodies(again)).toEqual(["from the server", "from here"]);
  expect(again.status).toMatchObject({ online: false, unsent: 1 });
  await phone!.device.goOnline();
  expect(server.items("alice").map((item) => item.body)).toEqual(["from the server", "from here"]);
});

test("items begin and expire by the clock of the test", async () => {
  const server = new TestServer({ now: "2026-03-01T12:00:00Z" });
  const [phone] = await devices(server, "phone");
  await server.create("alice", "a", "lunch", { starts: "1h", expires: "3h" });
  const events = heard(phone!.gregor, "created", "dismissed");
  expect(bodies(phone!.gregor)).toEqual([]);
  await server.advance(HOUR);
  expect([bodies(phone!.gregor), events]).toEqual([["lunch"], ["created"]]);
  await server.advance(2 * HOUR);
  expect([bodies(phone!.gregor), events]).toEqual([[], ["created", "dismissed"]]);
  expect(server.now).toEqual(new Date("2026-03-01T15:00:00Z"));
});

test("a day passes in a moment", async () => {
  const server = new TestServer();
  const [phone] = await devices(server, "phone");
  await server.advance(24 * HOUR);
  await server.create("alice", "a", "still here");
  expect(bodies(phone!.gregor)).toEqual(["still here"]);
});

test("a test may have replaced the timers of the platform", async () => {
  vi.useFakeTimers();
  try {
    const server = new TestServer();
    const [phone] = await devices(server, "phone");
    await server.create("alice", "a", "lunch", { starts: "1h" });
    await server.advance(HOUR);
    expect(bodies(phone!.gregor)).toEqual(["lunch"]);
  } finally {
    vi.useRealTimers();
  }
});

test("an item of one device is on that device alone", async () => {
  const server = new TestServer();
  const [phone, laptop] = await devices(server, "phone", "laptop");
  await phone!.gregor.put("draft", "hello", { thisDevice: true });
  await server.settled();
  expect([phone, laptop].map((device) => bodies(device!.gregor))).toEqual([["hello"], []]);
  expect(server.items("alice", "laptop")).toEqual([]);
  await phone!.gregor.put("draft", "hello again", { thisDevice: true });
  await server.settled();
  expect(server.items("alice", "phone").map((item) => item.body)).toEqual(["hello again"]);
});

test("a message that the server refuses is reported, and shown no more", async () => {
  const server = new TestServer({
    refuse: ({ creation }) => (creation?.category === "secret" ? "nobody may write secrets" : undefined),
  });
  const [phone] = await devices(server, "phone");
  const events = heard(phone!.gregor, "write_rejected");
  await phone!.gregor.create("secret", 1);
  await phone!.gregor.create("open", 2);
  await server.settled();
  expect([bodies(phone!.gregor), events]).toEqual([[2], ["write_rejected"]]);
  expect(phone!.gregor.rejected().map(({ error }) => error.message)).toEqual(["nobody may write secrets"]);
});

test("a token that is nobody's is refused", async () => {
  const server = new TestServer({ identify: (token) => (token === "let me in" ? "alice" : undefined) });
  const [phone] = await devices(server, "phone");
  expect(phone!.gregor.status).toMatchObject({ online: false, lastError: { code: "unauthenticated" } });
});

test("an erased user is gone from all devices, which can begin again", async () => {
  const server = new TestServer();
  const [phone] = await devices(server, "phone");
  await server.create("alice", "a", "old");
  const events = heard(phone!.gregor, "dismissed", "erased");
  await server.erase("alice");
  expect([bodies(phone!.gregor), events]).toEqual([[], ["dismissed", "erased"]]);
  await expect(phone!.gregor.create("a", "too early")).rejects.toMatchObject({ code: "erased" });
  phone!.gregor.reconnect();
  await server.settled();
  await phone!.gregor.create("a", "new");
  await server.settled();
  expect(server.items("alice").map((item) => item.body)).toEqual(["new"]);
});

test("what was written before an erase is not stored after it", async () => {
  const server = new TestServer();
  const [phone, laptop] = await devices(server, "phone", "laptop");
  await laptop!.device.goOffline();
  await laptop!.gregor.create("a", "written offline");
  const written = phone!.gregor.create("a", "under way");
  const erased = server.erase("alice");
  await Promise.allSettled([written, erased]);
  await laptop!.device.goOnline();
  expect([server.items("alice"), laptop!.gregor.items()]).toEqual([[], []]);
});

test("out-of-band messages reach the devices that are connected", async () => {
  const server = new TestServer();
  const [phone, laptop] = await devices(server, "phone", "laptop");
  const onPhone = heard(phone!.gregor, "out_of_band");
  await server.outOfBand("alice", "typing", { room: 7 });
  await laptop!.gregor.outOfBand("typing", { room: 8 });
  await server.settled();
  expect(onPhone).toEqual(["out_of_band", "out_of_band"]);
});

test("a message is stored once, however often it is sent", async () => {
  const server = new TestServer();
  const [phone] = await devices(server, "phone");
  const written = phone!.gregor.create("a", "once");
  await written;
  await phone!.device.goOffline(); // before the acknowledgement may have come
  await phone!.device.goOnline();
  expect(server.messages("alice").map((message) => message.creation?.body)).toEqual(["once"]);
  expect(await server.put("alice", "b", 1, { msgId: "m1" })).toMatchObject({ status: "stored", visible: true });
  expect(await server.put("alice", "b", 1, { msgId: "m1" })).toMatchObject({ status: "duplicate" });
  await expect(server.put("alice", "b", 2, { msgId: "m1" })).rejects.toThrow(GregorError);
});

test("the server says what came of a message", async () => {
  const server = new TestServer();
  const put = await server.put("alice", "theme", "dark");
  await server.create("alice", "chat.1");
  await server.create("alice", "chat.2");
  expect(await server.put("alice", "theme", "light")).toMatchObject({ replaced: put.msg_id, dismissed: 0, visible: true });
  expect(await server.dismissCategory("alice", "chat.", { prefix: true })).toMatchObject({ dismissed: 2 });
  await server.dismiss("alice", "to come");
  expect(await server.create("alice", "a", null, { msgId: "to come" })).toMatchObject({ visible: false });
  await expect(server.create("alice", "a", null, { starts: "2h", expires: "1h" })).rejects.toThrow("creation.starts");
});

// The law: whatever happens, all devices show what the server has for them, by its hash too.

const actions = {
  "a backend creates": (server: TestServer) => server.create("alice", "chat.1", null, { expires: "2h" }),
  "a backend puts": (server: TestServer) => server.put("alice", "settings", "x", { key: "theme", starts: "1h" }),
  "a backend puts for a phone": (server: TestServer) => server.put("alice", "settings", "y", { key: "theme", deviceId: "phone" }),
  "a backend notifies": (server: TestServer) => server.notify("alice", "likes", { title: "x" }, { key: "photo7" }),
  "a backend dismisses a category": (server: TestServer) => server.dismissCategory("alice", "chat.", { prefix: true }),
  "a backend dismisses a key": (server: TestServer) => server.dismissKey("alice", "theme"),
  "half an hour passes": (server: TestServer) => server.advance(HOUR / 2),
} as const;

const onDevice = {
  "goes offline": ({ device }: Opened) => device.goOffline(),
  "goes online": ({ device }: Opened) => device.goOnline(),
  puts: ({ gregor }: Opened) => gregor.put("settings", "z", { key: "theme" }),
  "puts for itself": ({ gregor }: Opened) => gregor.put("settings", "z", { key: "theme", thisDevice: true }),
  creates: ({ gregor }: Opened) => gregor.create("chat.2", null, { starts: "10m", expires: "1h" }),
  "reads all": ({ gregor }: Opened) => gregor.inbox.readAll(),
  archives: ({ gregor }: Opened) => gregor.inbox.archive("photo7"),
  "dismisses a category": ({ gregor }: Opened) => gregor.dismissCategory("chat.", { prefix: true }),
} as const;

class HashedServer extends TestServer {
  /** An instant, and the hash of what the device then has. */
  hash(deviceId: string): [asOf: number, hash: string] {
    const asOf = this.now.getTime() * 1_000;
    return [asOf, this._node.user("alice").hash(deviceId, asOf)];
  }
}

type Opened = Awaited<ReturnType<typeof devices>>[number];
const nameIn = <T extends object>(table: T) => fc.constantFrom(...(Object.keys(table) as (keyof T)[]));

const steps = fc.array(
  fc.oneof(
    nameIn(actions).map((name) => ({ who: undefined, name })),
    fc.record({ who: fc.constantFrom(0, 1), name: nameIn(onDevice) }),
  ),
  { maxLength: 25 },
);

test("all devices show what the server has for them, by its hash too", async () => {
  await fc.assert(
    fc.asyncProperty(steps, async (history) => {
      const server = new HashedServer();
      const all = await devices(server, "phone", "laptop");
      for (const { who, name } of history) {
        if (who === undefined) await actions[name](server);
        else await onDevice[name](all[who] as Opened);
      }
      for (const { device, gregor } of all) {
        await device.goOffline();
        await device.goOnline();
        await gregor.flush();
        await server.settled();
      }
      for (const { gregor } of all) {
        const { deviceId } = gregor;
        expect(gregor.items()).toEqual(server.items("alice", deviceId));
        expect([deviceId, gregor.replica.hashMatches(...server.hash(deviceId))]).toEqual([deviceId, true]);
        expect(gregor.status).toMatchObject({ synced: true, unsent: 0, lastError: null });
        await gregor.close();
      }
      opened.length = 0;
    }),
    { numRuns: 40 },
  );
});
