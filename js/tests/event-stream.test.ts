/** Where WebSockets are blocked, frames come as server-sent events, and messages go by POST. */

import { describe, expect, test } from "vitest";
import { START, World, item, problem, snapshot, texts, welcome } from "./fakes/world.js";

interface Call {
  readonly url: string;
  readonly init: any;
  answer(response: Response): void;
  fail(error: Error): void;
}

const MINUTE = 60_000;

/** A world whose network answers requests as the test says. */
class BlockedWorld extends World {
  readonly calls: Call[] = [];
  override fetch = (url: string, init: any): Promise<Response> =>
    new Promise((answer, fail) => {
      init.signal?.addEventListener("abort", () => fail(new DOMException("aborted", "AbortError")));
      this.calls.push({ url, init, answer, fail });
    });

  get call(): Call {
    return this.calls.at(-1)!;
  }

  /** Lets two WebSockets fail, so that the next attempt is a stream. */
  async block(): Promise<void> {
    for (let n = 0; n < 2; n++) {
      this.socket.end();
      await this.advance(2_000);
    }
  }

  async answerWith(response: Response): Promise<void> {
    this.call.answer(response);
    await this.settled();
  }
}

class Stream {
  private _controller!: ReadableStreamDefaultController<Uint8Array>;
  readonly response = new Response(
    new ReadableStream<Uint8Array>({ start: (controller) => void (this._controller = controller) }),
    { headers: { "Content-Type": "text/event-stream; charset=utf-8" } },
  );

  bytes(bytes: Uint8Array): void {
    this._controller.enqueue(bytes);
  }

  text(text: string): void {
    this.bytes(new TextEncoder().encode(text));
  }

  say(...frames: readonly object[]): void {
    for (const frame of frames) this.text(`retry: 3000\nevent: x\ndata: ${JSON.stringify(frame)}\n\n`);
  }

  end(): void {
    this._controller.close();
  }
}

const json = (status: number, value: object): Response =>
  new Response(JSON.stringify(value), {
    status,
    headers: { "Content-Type": status < 400 ? "application/json" : "application/problem+json" },
  });

async function streaming(items: Parameters<typeof snapshot>[0] = []) {
  const world = new BlockedWorld();
  const gregor = await world.tab({ deviceId: "phone/1" });
  await world.block();
  const stream = new Stream();
  await world.answerWith(stream.response);
  stream.say(welcome(world.clock.now), snapshot(items, world.clock.now));
  await world.settled();
  await world.settled();
  return { world, gregor, stream };
}

test("after two WebSockets that could not be opened, the device is synced by a stream", async () => {
  const { world, gregor } = await streaming([item("a", 1)]);
  expect(gregor.status).toMatchObject({ online: true, synced: true, lastError: null });
  expect(texts(gregor)).toEqual([1]);
  const { url, init } = world.call;
  expect(url).toBe("https://example.com/gregor/v1/users/alice/events?device_id=phone%2F1&cursor=0");
  expect(init).toMatchObject({ headers: { Authorization: "Bearer t" } });
});

test("events are read across all borders of chunks", async () => {
  for (const size of [1, 2, 3, 7, 64]) {
    const { world, gregor, stream } = await streaming();
    const cursor = world.clock.now * 1000;
    const frame = { type: "out_of_band", system: "typing", body: "ü €𝄞 data: \n\n" };
    const heard: unknown[] = [];
    gregor.on("out_of_band", ({ body }) => heard.push(body));
    const bytes = new TextEncoder().encode(
      `: keep-alive\n\nid: ${cursor}\r\nevent: out_of_band\r\ndata: ${JSON.stringify(frame)}\r\n\r\ndata:${JSON.stringify(frame)}\n\n`,
    );
    for (let start = 0; start < bytes.length; start += size) stream.bytes(bytes.slice(start, start + size));
    for (let n = 0; n < 10; n++) await world.settled();
    expect(heard).toEqual([frame.body, frame.body]);
  }
});

test("a consume is a POST with the epoch, and its answer an ack", async () => {
  const { world, gregor } = await streaming();
  await gregor.put("theme", "dark", { msgId: "m" });
  const { url, init } = world.call;
  expect(url).toBe("https://example.com/gregor/v1/messages?device_id=phone%2F1");
  expect(init).toMatchObject({ method: "POST", headers: { Authorization: "Bearer t", "Gregor-Epoch": "0" } });
  expect(JSON.parse(init.body)).toMatchObject({ messages: [{ uid: "alice", msg_id: "m" }] });
  await world.answerWith(json(200, { results: [{ status: "stored", uid: "alice", msg_id: "m", ctime: START * 1000 + 9e6 }] }));
  await world.settled();
  expect(gregor.status.unsent).toBe(0);
});

test("a POST that is refused for now is repeated on the same stream", async () => {
  const { world, gregor } = await streaming();
  await gregor.put("theme", "dark");
  const { init } = world.call;
  await world.answerWith(json(503, { code: "unavailable", action: "retry", detail: "the store did not answer" }));
  await world.advance(1_000);
  expect(world.call.init).not.toBe(init);
  expect(JSON.parse(world.call.init.body)).toEqual(JSON.parse(init.body));
  expect(gregor.status.online).toBe(true);
});

test("a verify is a new stream from the cursor", async () => {
  const { world, gregor, stream } = await streaming();
  stream.say({ type: "messages", prev: 1, cursor: (START + MINUTE) * 1000, messages: [] });
  await world.settled();
  await world.settled();
  expect(world.call.url).toMatch(/&cursor=\d+$/);
  const next = new Stream();
  await world.answerWith(next.response);
  const given = Number(/cursor=(\d+)/.exec(world.call.url)![1]);
  expect(given).toBeGreaterThan(START * 1000);
  next.say(welcome(world.clock.now), { ...snapshot([], world.clock.now, given), mode: "changes", prev: given });
  await world.settled();
  await world.settled();
  expect(gregor.status).toMatchObject({ online: true, synced: true });
  expect(world.sockets).toHaveLength(2);
});

test("WebSockets are tried again now and then, and taken when one opens", async () => {
  const { world, gregor } = await streaming();
  const offline: unknown[] = [];
  gregor.on("offline", (event) => offline.push(event));
  world.isVisible = false; // else it would ask whether the node is still there
  await world.advance(5 * MINUTE);
  expect(world.sockets).toHaveLength(3);
  world.socket.end();
  await world.advance(5 * MINUTE);
  expect(world.sockets).toHaveLength(4);
  world.socket.open();
  await world.settled();
  expect(world.sockets).toHaveLength(5);
  await world.connect();
  expect(world.socket.sent[0]).toMatchObject({ type: "hello" });
  expect(gregor.status).toMatchObject({ online: true, synced: true });
  expect(offline).toEqual([]);
});

test("a device that has no network goes back to WebSockets", async () => {
  const world = new BlockedWorld();
  await world.tab();
  await world.block();
  expect(world.calls).toHaveLength(1);
  world.call.fail(TypeError("failed to fetch"));
  await world.advance(10_000);
  expect(world.sockets).toHaveLength(3);
});

describe("what is not the answer of a Gregor server is an attempt that failed", () => {
  test.each([
    ["the page of a captive portal", () => new Response("<html>", { headers: { "Content-Type": "text/html" } }), /200 text\/html/],
    ["the error page of a proxy", () => new Response("<html>", { status: 502, headers: { "Content-Type": "text/html" } }), /502/],
    ["nothing", () => new Response(null, { status: 204 }), /204/],
    ["JSON of somebody else", () => json(500, { error: "oops" }), /code/],
    ["a problem document", () => json(401, { code: "unauthenticated", action: "reauthenticate", detail: "expired" }), /expired/],
  ])("%s", async (_, response, reason) => {
    const world = new BlockedWorld();
    const gregor = await world.tab({ token: () => "t" });
    await gregor.put("theme", "dark");
    await world.block();
    await world.answerWith(response());
    await world.settled();
    expect(gregor.status).toMatchObject({ online: false, unsent: 1 });
    expect(gregor.status.lastError?.message).toMatch(reason);
    expect(gregor.status.retryAt).not.toBeNull();
  });

  test("a server that asks for a delay gets it", async () => {
    const world = new BlockedWorld();
    const gregor = await world.tab();
    await world.block();
    const headers = { "Content-Type": "text/html", "Retry-After": "30" };
    await world.answerWith(new Response("busy", { status: 503, headers }));
    expect(gregor.status.retryAt! / 1000 - world.clock.now).toBeGreaterThan(30_000);
  });
});

test("an error event of the stream is the node's error", async () => {
  const { world, gregor, stream } = await streaming();
  stream.say(problem("unauthenticated", "reauthenticate", "the token has expired"));
  stream.end();
  await world.settled();
  await world.settled();
  expect(gregor.status).toMatchObject({ online: false, lastError: { code: "unauthenticated" }, retryAt: null });
});

test("a Retry-After that is a date leaves the delay as it would be", async () => {
  const world = new BlockedWorld();
  const gregor = await world.tab();
  await world.block();
  const headers = { "Content-Type": "text/html", "Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT" };
  await world.answerWith(new Response("busy", { status: 503, headers }));
  expect(gregor.status.retryAt).toBeGreaterThan(world.clock.now * 1000);
});
