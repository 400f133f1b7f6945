/** The client with a real server: over a WebSocket, and over streams where WebSockets are blocked. */

import { spawn, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { createGregor, type Gregor } from "../src/client.js";
import { browserEnvironment, type Environment } from "../src/environment.js";
import { memoryDatabase } from "../src/stores/memory.js";

let server: ChildProcess;
let logged = "";
let url: string;
const open = new Set<Gregor>();

beforeAll(async () => {
  server = spawn("python", ["-m", "gregor.cli", "serve", "--listen", "127.0.0.1:0", "--store", "sqlite://"], {
    stdio: ["ignore", "ignore", "pipe"],
  });
  url = await new Promise((resolve) =>
    createInterface(server.stderr!).on("line", (line) => {
      logged += `${line}\n`;
      const port = /127\.0\.0\.1:(\d+)/.exec(line)?.[1];
      if (port) resolve(`http://127.0.0.1:${port}`);
    }),
  );
});

afterEach(async () => {
  for (const gregor of open) await gregor.close();
  open.clear();
});

afterAll(async () => {
  const exited = once(server, "exit", { signal: AbortSignal.timeout(50_000) });
  server.kill();
  try {
    await exited;
  } catch {
    server.kill("SIGKILL");
    throw new Error(`the server did not stop; it had logged:\n${logged}`);
  }
}); // a graceful shutdown may take 15 s: to drain, and for connections that stay open

/** One in which a WebSocket never opens, as behind some proxies. */
function withoutWebSockets(): Environment {
  class Blocked {
    onclose?: (event: { code: number; reason: string }) => void;
    constructor() {
      queueMicrotask(() => this.onclose?.({ code: 1006, reason: "" }));
    }
    close(): void {}
  }
  return { ...browserEnvironment(), random: () => 0, WebSocket: Blocked as never };
}

function device(user: string, environment: Environment, deviceId?: string): Gregor {
  const gregor = createGregor({
    url,
    user,
    token: user, // as --auth open has it
    store: memoryDatabase(),
    environment,
    ...(deviceId && { deviceId }),
  });
  open.add(gregor);
  return gregor;
}

const heard = (gregor: Gregor, type: "created" | "dismissed" | "out_of_band" | "online" | "offline" | "erased") =>
  new Promise<any>((resolve) => gregor.on(type, resolve));

const texts = (gregor: Gregor) => gregor.items().map(({ body }) => body);

async function post(path: string, init: RequestInit): Promise<Response> {
  const response = await fetch(`${url}/v1/${path}`, init);
  if (!response.ok) throw new Error(await response.text());
  return response;
}

describe.each([
  ["a WebSocket", browserEnvironment],
  ["a stream of events", withoutWebSockets],
])("over %s", (name, environment) => {
  const user = `user of ${name} / ü`;

  test("what one device writes, the other shows", async () => {
    const phone = device(user, environment());
    const laptop = device(user, browserEnvironment());
    await Promise.all([phone.waitSynced(), laptop.waitSynced()]);
    const come = heard(laptop, "created");
    const id = await phone.put("theme", { "ü": [1, null, "dark"] });
    await phone.flush();
    expect((await come).item).toMatchObject({ msg_id: id, body: { "ü": [1, null, "dark"] }, key: "theme" });
    const gone = heard(phone, "dismissed");
    await laptop.dismissKey("theme");
    expect(await gone).toMatchObject({ item: { msg_id: id }, why: "dismissed" });
    expect(texts(phone)).toEqual([]);
  });

  test("a device that was away is brought up to date", async () => {
    const store = memoryDatabase();
    const options = { url, user, token: user, store, environment: environment() };
    const first = createGregor(options);
    await first.put("mail", 1);
    await first.flush();
    await first.close();
    const other = device(user, browserEnvironment());
    await other.put("mail", 2);
    await other.create("chat", "hello");
    await other.flush();
    const second = createGregor(options);
    open.add(second);
    await second.ready;
    expect(texts(second)).toEqual([1]);
    await second.waitSynced();
    expect(texts(second)).toEqual([2, "hello"]);
    expect(second.deviceId).toBe(first.deviceId);
  });

  test("an out-of-band message arrives, and one that is invalid is an error", async () => {
    const phone = device(user, environment());
    const laptop = device(user, browserEnvironment());
    await Promise.all([phone.waitSynced(), laptop.waitSynced()]);
    const come = heard(laptop, "out_of_band");
    await phone.outOfBand("chat.typing", { room: 7 });
    expect(await come).toMatchObject({ system: "chat.typing", body: { room: 7 } });
  });

  test("a message that the server refuses is reported, and does not block the next", async () => {
    const phone = device(user, environment());
    await phone.put("fine", 1, { msgId: `conflict over ${name}`.slice(0, 60) });
    await phone.flush();
    const other = device(user, environment());
    const refused = new Promise<any>((resolve) => other.on("write_rejected", resolve));
    await other.put("fine", 2, { msgId: `conflict over ${name}`.slice(0, 60) });
    await other.put("next", 3);
    await other.flush();
    expect((await refused).error.code).toBe("conflict");
    expect(other.rejected()).toHaveLength(1);
    await other.discard((await refused).message.msg_id);
    expect(other.rejected()).toEqual([]);
    expect(texts(other)).toContain(3);
  });

  test("a thousand writes arrive in order", async () => {
    const phone = device(`${user} with many`, environment());
    const numbers = Array.from({ length: 1000 }, (_, n) => n);
    await Promise.all(numbers.map((n) => phone.create("n", n)));
    await phone.flush();
    const laptop = device(`${user} with many`, browserEnvironment());
    await laptop.waitSynced();
    expect(texts(laptop)).toEqual(numbers);
  });

  test("a token of another user keeps all, and stops", async () => {
    const phone = createGregor({ url, user: "alice", token: "mallory", store: memoryDatabase(), environment: environment() });
    open.add(phone);
    await phone.put("secret", 1);
    await expect(phone.waitSynced()).rejects.toMatchObject({ code: expect.stringMatching(/setup|forbidden/) });
    expect(phone.status).toMatchObject({ online: false, unsent: 1, retryAt: null });
    const mallory = device("mallory", environment());
    await mallory.waitSynced();
    expect(texts(mallory)).toEqual([]);
  });

  test("an erase wipes the device, until a new life begins", async () => {
    const phone = device(`${user} erased`, environment());
    await phone.put("diary", "dear");
    await phone.flush();
    const erased = heard(phone, "erased");
    await post(`users/${encodeURIComponent(`${user} erased`)}`, { method: "DELETE" });
    expect((await erased).epoch).toBeGreaterThan(0);
    expect(texts(phone)).toEqual([]);
    await expect(phone.put("diary", "again")).rejects.toMatchObject({ code: "erased" });
    await expect(phone.waitSynced()).rejects.toMatchObject({ code: "erased" });
    phone.reconnect();
    await phone.put("diary", "new");
    await phone.flush();
    await phone.waitSynced();
    expect(texts(phone)).toEqual(["new"]);
  });
});
