/** A device of a test: the world in which a real client runs. */

import { createGregor, type Gregor, type GregorOptions } from "../client.js";
import type { Environment } from "../environment.js";
import { decode, encode, hasExactIntegers } from "../json.js";
import type { DeviceID, UID } from "../message.js";
import { memoryDatabase } from "../stores/memory.js";
import type { FakeClock } from "./fake-clock.js";
import type { Conversation, FakeNode, Frame } from "./fake-node.js";

/** Each delivery takes a turn, so that frames arrive after they were sent, and in order. */
const later = (callback: () => void): void => void Promise.resolve().then(callback);

/** A WebSocket to the node in memory. */
class FakeSocket {
  onopen: (() => void) | null = null;
  onmessage: ((event: { readonly data: string }) => void) | null = null;
  onclose: ((event: { readonly code: number; readonly reason: string }) => void) | null = null;
  private _conversation: Conversation | undefined;
  private _isClosed = false;

  constructor(
    private readonly _node: FakeNode,
    /** The sockets of the device that are open, or about to be. */
    private readonly _sockets: Set<FakeSocket>,
    isOnline: () => boolean,
  ) {
    _sockets.add(this);
    later(() => (isOnline() ? this._open() : this.cut()));
  }

  /** What the client sends. */
  send(text: string): void {
    later(() => {
      if (!this._isClosed) this._conversation?.receive(decode(text, hasExactIntegers()) as Frame);
    });
  }

  /** The client closes. */
  close(): void {
    later(() => this._end(1000, ""));
  }

  /** The connection breaks. What is under way is lost. */
  cut(): void {
    this._end(1006, "");
  }

  private _open(): void {
    if (this._isClosed) return;
    this._conversation = this._node.accept({
      send: (frame) => this._deliver(encode(frame)),
      close: (code, reason) => later(() => this._end(code, reason)),
    });
    this.onopen?.();
  }

  private _deliver(data: string): void {
    later(() => {
      if (!this._isClosed) this.onmessage?.({ data });
    });
  }

  private _end(code: number, reason: string): void {
    if (this._isClosed) return;
    this._isClosed = true;
    this._sockets.delete(this);
    if (this._conversation) this._node.forget(this._conversation);
    later(() => this.onclose?.({ code, reason }));
  }
}

export class TestDevice {
  private readonly _store = memoryDatabase(true);
  private readonly _sockets = new Set<FakeSocket>();
  private readonly _listeners = new Map<string, Set<(event: Event) => void>>();
  private _isOnline = true;

  constructor(
    private readonly _user: UID,
    private readonly _deviceId: DeviceID,
    private readonly _clock: FakeClock,
    private readonly _node: FakeNode,
    private readonly _random: () => number,
  ) {}

  /** What `createGregor` and `GregorProvider` take. A client that is made with them later finds what
   * the one before it has stored, like a page that is loaded again. */
  get options(): GregorOptions {
    return {
      url: "http://gregor.test",
      user: this._user,
      token: this._user,
      deviceId: this._deviceId,
      store: this._store,
      environment: this._environment(),
    };
  }

  /** How many connections of this device are open. */
  get connections(): number {
    return this._sockets.size;
  }

  /** Makes a client, and waits until it shows what the server has. */
  async open(): Promise<Gregor> {
    const gregor = createGregor(this.options);
    await this._clock.advance(0);
    return gregor;
  }

  /** Cuts all connections, and lets none through. */
  async goOffline(): Promise<void> {
    this._isOnline = false;
    for (const socket of this._sockets) socket.cut();
    await this._happen("offline");
  }

  /** Has a network again, as the browser then says. */
  async goOnline(): Promise<void> {
    this._isOnline = true;
    await this._happen("online");
    // A client that could not connect for long tries in turn what this server does not speak.
    if (!this.connections) await this._happen("online");
  }

  private async _happen(type: string): Promise<void> {
    for (const listener of this._listeners.get(type) ?? []) listener(new Event(type));
    await this._clock.advance(0);
  }

  private _environment(): Environment {
    const clock = this._clock;
    const start = clock.now;
    const connect = (): FakeSocket => new FakeSocket(this._node, this._sockets, () => this._isOnline);
    return {
      now: () => clock.now,
      monotonic: () => clock.now - start,
      setTimeout: (callback, ms) => clock.setTimeout(callback, ms),
      clearTimeout: (timer) => clock.clearTimeout(timer),
      random: this._random,
      listen: (type, listener) => this._listen(type, listener),
      isVisible: () => true,
      fetch: () => Promise.reject(new TypeError("the test server speaks over WebSockets only")),
      WebSocket: function () {
        return connect();
      } as unknown as typeof WebSocket,
      indexedDB: undefined,
      storage: undefined,
      locks: undefined,
      BroadcastChannel: undefined,
    };
  }

  private _listen(type: string, listener: (event: Event) => void): () => void {
    const listeners = this._listeners.get(type) ?? new Set();
    this._listeners.set(type, listeners.add(listener));
    return () => listeners.delete(listener);
  }
}
