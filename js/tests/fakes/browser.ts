/**
 * A browser in memory: tabs with Web Locks, BroadcastChannels, a shared database, events, and a
 * clock. What has been begun happens in tasks, in an order that the test chooses; those of one
 * source for one tab happen in their order, as the specifications say.
 *
 * A tab is awake; or frozen, when its tasks and timers wait; or gone, when they never happen.
 */

import type { Channel, Environment, Locks } from "../../src/environment.js";
import { unavailable } from "../../src/errors.js";
import { memoryDatabase } from "../../src/stores/memory.js";
import { Store, type Database } from "../../src/stores/store.js";

interface Task {
  readonly tab: FakeTab;
  readonly source: string;
  readonly run: () => void;
}

interface LockRequest {
  readonly tab: FakeTab;
  readonly whileHeld: () => Promise<void>;
  readonly resolve: (value: unknown) => void;
  readonly reject: (error: unknown) => void;
}

interface FakeTimer {
  readonly tab: FakeTab;
  readonly at: number;
  readonly callback: () => void;
}

/** Microtasks have no end that one could ask for; a macrotask of Node comes after all of them. */
const microtasks = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

const abortError = (reason: string): DOMException => new DOMException(reason, "AbortError");

export class FakeBrowser {
  /** Milliseconds since the browser was started. */
  time = 0;
  /** How many of the next broadcasts get lost on the way. */
  broadcastsToLose = 0;
  readonly tabs: FakeTab[] = [];
  readonly database: Database = memoryDatabase(true);
  readonly channels: FakeChannel[] = [];
  private _tasks: Task[] = [];
  private _timers: FakeTimer[] = [];
  private readonly _locks = new Map<string, { held: LockRequest | undefined; queue: LockRequest[] }>();

  /** `choose(n)` is an index below n: which of the tasks that may be next is next. */
  constructor(private readonly _choose: (count: number) => number = () => 0) {}

  open(parts?: Partial<Environment>): FakeTab {
    const tab = new FakeTab(this, parts);
    this.tabs.push(tab);
    return tab;
  }

  /** Lets the clock go on, and everything happen that is due until then. */
  advance(ms: number): Promise<void> {
    return this.advanceTo(this.time + ms);
  }

  async advanceTo(end: number): Promise<void> {
    for (;;) {
      await this.settle();
      const next = this._nextTimer();
      if (!next || next.at > end) break;
      this.cancel(next);
      this.time = Math.max(this.time, next.at);
      next.callback();
    }
    this.time = end;
  }

  /** When the next timer is due; undefined if there is none. */
  get due(): number | undefined {
    return this._nextTimer()?.at;
  }

  /** Of several that are due at one time, the one set first. */
  private _nextTimer(): FakeTimer | undefined {
    return this._timers.filter(({ tab }) => tab.isAwake).sort((a, b) => a.at - b.at)[0];
  }

  /** Lets everything happen that has been begun, but what waits for the clock. */
  async settle(): Promise<void> {
    while (await this.step());
  }

  /** Lets one thing happen. Whether there was any. */
  async step(): Promise<boolean> {
    await microtasks();
    const sources = new Map<string, Task>();
    for (const task of this._tasks) {
      const source = `${task.tab.id} ${task.source}`;
      if (task.tab.isAwake && !sources.has(source)) sources.set(source, task);
    }
    const task = [...sources.values()][this._choose(sources.size)];
    if (!task) return false;
    this._tasks.splice(this._tasks.indexOf(task), 1);
    task.run();
    await microtasks();
    return true;
  }

  queue(tab: FakeTab, source: string, run: () => void): void {
    if (!tab.isGone) this._tasks.push({ tab, source, run });
  }

  schedule(timer: FakeTimer): FakeTimer {
    this._timers.push(timer);
    return timer;
  }

  cancel(timer: unknown): void {
    this._timers = this._timers.filter((other) => other !== timer);
  }

  /** The browser releases what a tab held. */
  forget(tab: FakeTab): void {
    this._tasks = this._tasks.filter((task) => task.tab !== tab);
    this._timers = this._timers.filter((timer) => timer.tab !== tab);
    for (const lock of this._locks.values()) {
      lock.queue = lock.queue.filter((request) => request.tab !== tab);
      if (lock.held?.tab === tab) lock.held = undefined;
    }
    for (const name of this._locks.keys()) this._grant(name);
  }

  post(from: FakeChannel, message: unknown): void {
    const data: unknown = structuredClone(message);
    for (const channel of this.channels) {
      if (channel === from || channel.name !== from.name) continue;
      if (channel.tab.isCached || this._loses()) channel.tab.misses(data);
      else this.queue(channel.tab, `channel ${from.id}`, () => channel.receive(structuredClone(data)));
    }
  }

  private _loses(): boolean {
    return this.broadcastsToLose > 0 && this.broadcastsToLose-- > 0;
  }

  request(tab: FakeTab, ...[name, options, whileHeld]: Parameters<Locks["request"]>): Promise<unknown> {
    const { steal, signal } = options;
    if (steal && signal) return Promise.reject(new DOMException("steal and signal", "NotSupportedError"));
    if (signal?.aborted) return Promise.reject(signal.reason);
    return new Promise((resolve, reject) => {
      const lock = this._lock(name);
      const request = { tab, whileHeld, resolve, reject };
      if (steal) {
        this._rob(lock.held);
        lock.held = undefined;
        lock.queue.unshift(request);
      } else {
        lock.queue.push(request);
      }
      signal?.addEventListener("abort", () => {
        if (!lock.queue.includes(request)) return; // granted: too late
        lock.queue = lock.queue.filter((other) => other !== request);
        reject(signal.reason);
        this._grant(name);
      });
      this._grant(name);
    });
  }

  private _lock(name: string) {
    const lock = this._locks.get(name) ?? { held: undefined, queue: [] };
    this._locks.set(name, lock);
    return lock;
  }

  private _rob(held: LockRequest | undefined): void {
    if (held) this.queue(held.tab, "locks", () => held.reject(abortError("the lock was stolen")));
  }

  private _grant(name: string): void {
    const lock = this._lock(name);
    if (lock.held) return;
    const request = lock.queue.shift();
    if (!request) return;
    lock.held = request;
    this.queue(request.tab, "locks", () => {
      const ended = Promise.resolve(request.whileHeld());
      ended.then(request.resolve, request.reject).then(() => {
        if (lock.held !== request) return; // robbed
        lock.held = undefined;
        this._grant(name);
      });
    });
  }
}

export class FakeTab {
  readonly id: number;
  isAwake = true;
  isGone = false;
  /** Whether the page is kept for the way back: what is broadcast meanwhile never arrives. */
  isCached = false;
  isVisible = true;
  /** How long the database takes for each transaction of this tab: half before it, half for its answer. */
  storeMs = 0;
  /** How many changes of other tabs it was not told of. */
  missed = 0;
  /** How many of the next transactions fail. */
  transactionsToFail = 0;
  private _isStoreBroken = false;
  private readonly _listeners: { readonly type: string; readonly listener: (event: Event) => void }[] = [];

  constructor(
    readonly browser: FakeBrowser,
    private readonly _parts: Partial<Environment> = {},
  ) {
    this.id = browser.tabs.length;
  }

  get environment(): Environment {
    const { browser } = this;
    return {
      now: () => browser.time,
      monotonic: () => browser.time,
      setTimeout: (callback, ms) => browser.schedule({ tab: this, at: browser.time + ms, callback }),
      clearTimeout: (timer) => browser.cancel(timer),
      random: () => 0.5,
      isVisible: () => this.isVisible,
      listen: (type, listener) => {
        const entry = { type, listener };
        this._listeners.push(entry);
        return () => this._listeners.splice(this._listeners.indexOf(entry), 1);
      },
      fetch: () => Promise.reject(new TypeError("no network")),
      WebSocket: undefined,
      indexedDB: undefined,
      storage: undefined,
      locks: { request: (...request) => browser.request(this, ...request) },
      BroadcastChannel: channelClass(this),
      ...this._parts,
    };
  }

  /** The database answers no more. */
  breakStore(): void {
    this._isStoreBroken = true;
  }

  /** A store on the browser's database: each transaction, and each answer, is a task. */
  store(): Store {
    const { browser } = this;
    return new Store({
      ...browser.database,
      transact: (keys, decide, isUrgent) =>
        new Promise((resolve, reject) => {
          const answer = (settle: () => void): void => this._slowly(() => browser.queue(this, "database", settle));
          const transact = (): void => {
            if (this.transactionsToFail-- > 0) return answer(() => reject(unavailable("the store fails")));
            browser.database.transact(keys, decide, isUrgent).then(
              (result) => answer(() => resolve(result)),
              (error) => answer(() => reject(error)),
            );
          };
          browser.queue(this, "database", () => this._isStoreBroken || this._slowly(transact));
        }),
    });
  }

  private _slowly(callback: () => void): void {
    if (!this.storeMs) return callback();
    this.browser.schedule({ tab: this, at: this.browser.time + this.storeMs / 2, callback });
  }

  /** A broadcast does not reach it. */
  misses(data: unknown): void {
    if ("changes" in (data as object)) this.missed++;
  }

  /** The page hears an event. */
  dispatch(type: string): void {
    for (const { listener } of this._listeners.filter((entry) => entry.type === type)) listener(new Event(type));
  }

  /** The person closes the tab. */
  close(): void {
    this.dispatch("pagehide");
    this.kill();
  }

  /** The tab's process ends. */
  kill(): void {
    this.isAwake = false;
    this.isGone = true;
    for (const channel of [...this.browser.channels]) if (channel.tab === this) channel.close();
    this.browser.forget(this);
  }

  /** The tab hears nothing and does nothing, and no event has told it so. */
  hang(): void {
    this.isAwake = false;
  }

  goOn(): void {
    this.isAwake = !this.isGone;
  }

  /** The browser saves energy. */
  freeze(): void {
    this.dispatch("freeze");
    this.hang();
  }

  resume(): void {
    this.goOn();
    this.dispatch("resume");
  }

  /** The page is kept for the way back. */
  navigateAway(): void {
    this.dispatch("pagehide");
    this.isCached = true;
    this.hang();
  }

  navigateBack(): void {
    this.isCached = false;
    this.goOn();
    this.dispatch("pageshow");
  }

}

class FakeChannel implements Channel {
  onmessage: ((event: MessageEvent) => void) | null = null;
  readonly id: number;
  private _isClosed = false;

  constructor(
    readonly tab: FakeTab,
    readonly name: string,
  ) {
    this.id = tab.browser.channels.push(this);
  }

  postMessage(message: unknown): void {
    if (this.tab.isGone) return; // what still runs of it is not there
    if (this._isClosed) throw new DOMException("the channel is closed", "InvalidStateError");
    this.tab.browser.post(this, message);
  }

  receive(data: unknown): void {
    if (this._isClosed) return;
    if (this.onmessage) this.onmessage(new MessageEvent("message", { data }));
    else this.tab.misses(data);
  }

  close(): void {
    this._isClosed = true;
    const { channels } = this.tab.browser;
    if (channels.includes(this)) channels.splice(channels.indexOf(this), 1);
  }
}

const channelClass = (tab: FakeTab) =>
  class extends FakeChannel {
    constructor(name: string) {
      super(tab, name);
    }
  };
