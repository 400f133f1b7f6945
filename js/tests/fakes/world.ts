/** A world in which a test is the network, the server and the browser. */

import type { Channel, Environment, Locks, Timer } from "../../src/environment.js";
import { createGregor, type Gregor, type GregorOptions } from "../../src/client.js";
import type { Item } from "../../src/message.js";
import { hashText, entryHash } from "../../src/state-hash.js";
import { memoryDatabase } from "../../src/stores/memory.js";
import { FakeClock } from "../../src/testing/fake-clock.js";

export const START = Date.UTC(2026, 0, 1);

/** The node's end of a WebSocket. */
export class Socket {
  onopen?: () => void;
  onmessage?: (event: { readonly data: string }) => void;
  onclose?: (event: { readonly code: number; readonly reason: string }) => void;
  readonly sent: any[] = [];
  isClosed = false;

  send(text: string): void {
    this.sent.push(JSON.parse(text));
  }

  close(): void {
    this.isClosed = true;
  }

  open(): this {
    this.onopen?.();
    return this;
  }

  say(...frames: readonly object[]): this {
    for (const frame of frames) this.onmessage?.({ data: JSON.stringify(frame) });
    return this;
  }

  end(code = 1006, reason = ""): void {
    this.onclose?.({ code, reason });
  }

  get last(): any {
    return this.sent.at(-1);
  }
}

/** One browser: what its tabs share, and the network that the test is. */
export class World {
  readonly clock = new FakeClock(START);
  readonly sockets: Socket[] = [];
  readonly database = memoryDatabase(true);
  readonly errors: unknown[] = [];
  isVisible = true;
  losesBroadcasts = false;
  /** What the wall clock shows beyond the clock of the test. */
  ahead = 0;
  fetch: (url: string, init: any) => Promise<Response> = () => Promise.reject(TypeError("failed to fetch"));
  private readonly _channels = new Set<FakeChannel>();
  private readonly _waiting: (() => void)[] = [];
  private readonly _listeners = new Map<string, Set<(event: Event) => void>>();
  private _isLocked = false;

  environment(): Environment {
    const world = this;
    return {
      now: () => world.clock.now + world.ahead,
      monotonic: () => world.clock.now - START,
      setTimeout: (callback, ms): Timer => world.clock.setTimeout(callback, ms),
      clearTimeout: (timer) => world.clock.clearTimeout(timer),
      random: () => 0.5,
      listen: (type, listener) => {
        const listeners = world._listeners.get(type) ?? new Set();
        world._listeners.set(type, listeners.add(listener));
        return () => listeners.delete(listener);
      },
      isVisible: () => world.isVisible,
      fetch: (url, init) => world.fetch(String(url), init),
      WebSocket: class extends Socket {
        constructor() {
          super();
          world.sockets.push(this);
        }
      } as never,
      indexedDB: undefined,
      storage: undefined,
      locks: { request: (_, options, whileHeld) => world._request(options.signal, whileHeld) } as Locks,
      BroadcastChannel: class extends FakeChannel {
        constructor(_: string) {
          super(world._channels, () => world.losesBroadcasts);
        }
      },
    };
  }

  /** A tab of this browser. */
  async tab(options: Partial<GregorOptions> = {}): Promise<Gregor> {
    const gregor = createGregor({
      url: "https://example.com/gregor/",
      user: "alice",
      token: "t",
      store: this.database,
      environment: this.environment(),
      ...options,
    });
    await this.settled();
    return gregor;
  }

  /** The browser says that something happens. */
  async happen(type: string): Promise<void> {
    for (const listener of [...(this._listeners.get(type) ?? [])]) listener(new Event(type));
    await this.settled();
  }

  async settled(): Promise<void> {
    await this.clock.advance(0);
  }

  async advance(ms: number): Promise<void> {
    await this.clock.advance(ms);
  }

  /** The node's end of the connection that was made last. */
  get socket(): Socket {
    return this.sockets.at(-1)!;
  }

  /** Opens the last connection, welcomes the device, and syncs it with these items. */
  async connect(items: readonly Item[] = [], socket = this.socket): Promise<Socket> {
    socket.open();
    await this.settled();
    socket.say(welcome(this.clock.now), snapshot(items, this.clock.now));
    await this.settled();
    return socket;
  }

  private async _request(signal: AbortSignal | undefined, whileHeld: () => Promise<void>): Promise<void> {
    if (this._isLocked) await new Promise<void>((resolve) => this._waiting.push(resolve));
    this._isLocked = true;
    if (!signal?.aborted) await whileHeld();
    this._isLocked = false;
    this._waiting.shift()?.();
  }
}

class FakeChannel implements Channel {
  onmessage: ((event: MessageEvent) => void) | null = null;

  constructor(
    private readonly _all: Set<FakeChannel>,
    private readonly _isLost: () => boolean,
  ) {
    _all.add(this);
  }

  postMessage(message: unknown): void {
    const data: unknown = structuredClone(message);
    if (this._isLost()) return;
    for (const other of this._all) {
      if (other !== this) queueMicrotask(() => other.onmessage?.({ data } as MessageEvent));
    }
  }

  close(): void {
    this._all.delete(this);
  }
}

const micros = (ms: number): number => ms * 1000;

export const welcome = (now: number, uid = "alice", epoch = 0) => ({
  type: "welcome",
  uid,
  device_id: "any",
  now: micros(now),
  epoch,
  limits: { messages: 500 },
});

export const snapshot = (items: readonly Item[], now: number, cursor = micros(now)) => ({
  type: "sync",
  mode: "snapshot",
  prev: 0,
  cursor,
  as_of: micros(now),
  hash: hashText(items.reduce((sum, { ctime, msg_id }) => sum + entryHash(ctime, msg_id), 0n)),
  items,
});

export const item = (msg_id: string, body: unknown = null, rest: Partial<Item> = {}): Item => ({
  msg_id,
  ctime: micros(START) - 1000 + msg_id.charCodeAt(0),
  category: "mail",
  body,
  ...rest,
});

/** What was stored for all devices of alice. */
export const stored = (msg_id: string, prev: number, ctime: number, parts: object) => ({
  type: "messages",
  prev,
  cursor: ctime,
  messages: [{ uid: "alice", msg_id, ctime, prev, ...parts }],
});

export const ack = (n: number, ...results: readonly object[]) => ({ type: "ack", n, results });

export const problem = (code: string, action: string, message = "no") => ({ type: "error", code, action, message });

export const texts = (gregor: Gregor): unknown[] => gregor.items().map(({ body }) => body);
