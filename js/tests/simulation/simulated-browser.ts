/** One browser of a simulation, with one client in each tab. */

import { createGregor, type Gregor } from "../../src/client.js";
import type { Environment } from "../../src/environment.js";
import { unavailable, type GregorError } from "../../src/errors.js";
import { Replica } from "../../src/replica.js";
import type { Database } from "../../src/stores/store.js";
import { FakeBrowser, type FakeTab } from "../fakes/browser.js";
import type { Random } from "../random.js";

/** What has happened, for Python. */
type Event = readonly [name: string, ...details: unknown[]];

/** When a simulation begins. */
const START = Date.UTC(2026, 0, 1);

/** How often a replica was not right after a sync: it is repaired, and nothing else shows it. */
let mismatches = 0;
const { hashMatches } = Replica.prototype;
Replica.prototype.hashMatches = function (asOf, hash) {
  const isRight = hashMatches.call(this, asOf, hash);
  if (!isRight) mismatches++;
  return isRight;
};

/** The device's end of a WebSocket. */
class SimulatedSocket {
  onopen?: () => void;
  onmessage?: (event: { readonly data: string }) => void;
  onclose?: (event: { readonly code: number; readonly reason: string }) => void;
  readonly id: number;
  private _state: "connecting" | "open" | "closing" | "closed" = "connecting";

  constructor(
    readonly tab: FakeTab,
    private readonly _browser: SimulatedBrowser,
  ) {
    this.id = _browser.sockets.push(this) - 1;
    _browser.note("connects", tab.id, this.id);
  }

  send(text: string): void {
    if (this._state === "connecting") throw new DOMException("still connecting", "InvalidStateError");
    if (this._state === "open") this._browser.note("sends", this.id, text);
  }

  close(): void {
    if (this._state === "closed") return;
    this._state = "closing";
    this._browser.note("closes", this.id);
  }

  opened(): void {
    this._queue(() => {
      if (this._state !== "connecting") return;
      this._state = "open";
      this.onopen?.();
    });
  }

  frame(data: string): void {
    this._queue(() => this._state === "open" && this.onmessage?.({ data }));
  }

  closed(code: number, reason: string): void {
    this._queue(() => {
      this._state = "closed";
      this.onclose?.({ code, reason });
    });
  }

  private _queue(task: () => void): void {
    this._browser.queue(this.tab, `socket ${this.id}`, task);
  }
}

/** A tab in which a client runs. */
interface Page {
  readonly tab: FakeTab;
  readonly gregor: Gregor;
  isReady: boolean;
  isFrozen: boolean;
  /** What is visible, as the events have it; undefined until somebody listens. */
  visible: Set<string> | undefined;
}

export class SimulatedBrowser extends FakeBrowser {
  readonly sockets: SimulatedSocket[] = [];
  /** By how many milliseconds the wall clock is ahead. */
  private _ahead = 0;
  private _isCalm = false;
  private _events: Event[] = [];
  private readonly _pages = new Map<number, Page>();
  private readonly _tokens: ((token: unknown) => void)[] = [];

  constructor(
    readonly random: Random,
    private readonly _user: string,
    private readonly _deviceId: string,
  ) {
    super((count) => random.below(count));
  }

  note(...event: Event): void {
    this._events.push(event);
  }

  /** Lets everything happen until a time, then calls one of the methods below, and answers when all
   * is quiet. */
  async call(time: number, method: string, args: readonly unknown[]): Promise<object> {
    const now = Math.max(time, this.time);
    mismatches = 0;
    await this.advanceTo(now);
    const methods = this as unknown as Record<string, (...args: readonly unknown[]) => unknown>;
    const result = methods[method]!(...args);
    await this.advanceTo(now);
    for (const page of this._pages.values()) if (page.tab.isAwake && page.isReady) await this._check(page);
    return { result, events: this._events.splice(0), due: this.due, mismatches };
  }

  // What Python calls

  /** Nothing but to let time pass. */
  wait(): void {}

  setClock(ahead: number): void {
    this._ahead = ahead;
  }

  /** The faults are over: of the store, and of all tabs. */
  calm(): void {
    this._isCalm = true;
    this.broadcastsToLose = 0;
    for (const page of this._pages.values()) this._waken(page);
  }

  /** The tabs are numbered from 0. */
  openTab(_: number): void {
    const tab = this.open();
    const gregor = createGregor({
      url: "https://simulated",
      user: this._user,
      deviceId: this._deviceId,
      token: () => this._token(),
      store: this._database(tab),
      environment: this._environment(tab),
    });
    const page: Page = { tab, gregor, isReady: false, isFrozen: false, visible: undefined };
    this._pages.set(tab.id, page);
    gregor.on("erased", () => {
      this.note("erased", tab.id);
    });
    gregor.on("created", ({ item }) => {
      page.visible?.add(item.msg_id);
      this.note("shows", tab.id, item.msg_id, gregor.replica.device.epoch);
    });
    gregor.on("dismissed", ({ item, why }) => {
      page.visible?.delete(item.msg_id);
      const mayComeBack = !!(item.starts_at || item.expires_at || tab.missed);
      this.note("hides", tab.id, item.msg_id, gregor.replica.device.epoch, why, mayComeBack);
    });
    gregor.ready.then(() => {
      page.isReady = true;
    });
  }

  /** The tab is closed, or its process ends. */
  endTab(id: number, how: "close" | "kill"): void {
    const { tab } = this._page(id);
    tab[how]();
    this._pages.delete(id);
    for (const socket of this.sockets) if (socket.tab === tab) socket.close();
  }

  loseBroadcasts(count: number): void {
    this.broadcastsToLose = count;
  }

  /** The browser stops a tab in one of its ways, or the person looks at another one. */
  sleep(id: number, how: "hang" | "freeze" | "navigateAway" | "hide"): void {
    const page = this._page(id);
    const { tab } = page;
    page.isFrozen = how === "freeze";
    if (how !== "hide") return tab[how]();
    tab.isVisible = false;
    tab.dispatch("visibilitychange");
  }

  waken(id: number): void {
    const page = this._pages.get(id);
    if (page) this._waken(page);
  }

  /** The browser has noticed that there is a network again. */
  online(): void {
    for (const { tab } of this._pages.values()) if (tab.isAwake) tab.dispatch("online");
  }

  /** The person does something in a tab: its outcome is an event, by the number of the call. */
  act(number: number, id: number, method: string, ...args: readonly unknown[]): void {
    const { gregor } = this._page(id);
    const epoch = gregor.replica.device.epoch;
    const methods = gregor as unknown as Record<string, (...args: readonly unknown[]) => Promise<unknown>>;
    methods[method]!(...args).then(
      (result) => this.note("done", number, result ?? null, epoch === gregor.replica.device.epoch ? epoch : null),
      (error: GregorError) => this.note("failed", number, error.code ?? String(error)),
    );
  }

  reconnect(id: number): void {
    this._page(id).gregor.reconnect();
  }

  /** The token function answers. One that is undefined is an error. */
  giveToken(number: number, token: unknown): void {
    this._tokens[number]?.(token);
  }

  opened(socket: number): void {
    this.sockets[socket]?.opened();
  }

  frame(socket: number, text: string): void {
    this.sockets[socket]?.frame(text);
  }

  closed(socket: number, code: number, reason: string): void {
    this.sockets[socket]?.closed(code, reason);
  }

  /** What a tab holds and shows. */
  look(id: number): object {
    const { gregor } = this._page(id);
    const { replica, status } = gregor;
    return {
      status,
      epoch: replica.device.epoch,
      visible: gregor.items().map(({ msg_id }) => msg_id),
      hidden: [...replica.hidden.keys(), ...replica.awaited.keys()],
      outbox: replica.outbox.size,
      rejected: gregor.rejected().map(({ message }) => message.msg_id),
      items: [...replica.facts.items.values()],
    };
  }

  hasHash(id: number, asOf: number, hash: string): boolean {
    return hashMatches.call(this._page(id).gregor.replica, asOf, hash);
  }

  // The world of a tab

  private _page(id: number): Page {
    return this._pages.get(id) as Page;
  }

  private _waken({ tab, isFrozen }: Page): void {
    if (tab.isCached) tab.navigateBack();
    else if (isFrozen && !tab.isAwake) tab.resume();
    else tab.goOn();
    if (tab.isVisible) return;
    tab.isVisible = true;
    tab.dispatch("visibilitychange");
  }

  private _environment(tab: FakeTab): Environment {
    const browser = this;
    const environment = tab.environment;
    return {
      ...environment,
      now: () => START + browser.time + browser._ahead,
      random: () => browser.random.number(),
      setTimeout: (callback, ms) => environment.setTimeout(callback, Math.trunc(ms)),
      fetch: () => Promise.reject(new TypeError("event streams are not simulated")),
      WebSocket: class extends SimulatedSocket {
        constructor(_: string) {
          super(tab, browser);
        }
      } as never,
    };
  }

  private _token(): Promise<string> {
    return new Promise((resolve, reject) => {
      const number = this._tokens.push((token) => {
        if (token === undefined) reject(new Error("no token"));
        else resolve(token as string);
      });
      this.note("token", number - 1);
    });
  }

  /** The browser's database as a tab has it: it takes its time, and may fail before a transaction.
   * Transactions, and their answers, come in the order in which they were asked for. */
  private _database(tab: FakeTab): Database {
    let begun = 0;
    let answered = 0;
    const { database } = this;
    return {
      ...database,
      transact: (keys, decide, isUrgent) =>
        new Promise((resolve, reject) => {
          const begin = async (): Promise<void> => {
            const transact = () => database.transact(keys, decide, isUrgent);
            const found = keys ? 0 : tab.missed;
            const settle = await this._transaction(tab, transact).then(
              (result) => () => {
                tab.missed -= found;
                resolve(result);
              },
              (error: GregorError) => {
                this.note("not saved", tab.id, error.message);
                return () => reject(error);
              },
            );
            answered = Math.max(answered, this.time + this._latency());
            this.schedule({ tab, at: answered, callback: settle });
          };
          begun = Math.max(begun, this.time + this._latency());
          this.schedule({ tab, at: begun, callback: () => void begin() });
        }),
    };
  }

  /** Where the store fails while a page loads, its client goes on in memory, and alone: so it does not. */
  private async _transaction<T>(tab: FakeTab, transact: () => Promise<T>): Promise<T> {
    if (this._isCalm || !this._page(tab.id).isReady || !this.random.chance(0.01)) return transact();
    throw unavailable("the store fails");
  }

  /** Milliseconds. */
  private _latency(): number {
    return this._isCalm ? 0 : Math.floor(this.random.number() * this.random.of([0, 0, 0, 2, 2, 20, 20, 500, 8_000]));
  }

  // What holds at any time

  /** The events of a tab, applied to what it showed, give what it shows. */
  private async _check(page: Page): Promise<void> {
    const { tab, gregor } = page;
    const shown = gregor.items().map(({ msg_id }) => msg_id);
    await this.settle(); // by looking, the tab may have noticed that something has begun or expired
    if (!page.visible) {
      page.visible = new Set(shown);
      return this.note("opens", tab.id, shown, gregor.replica.device.epoch);
    }
    const { visible } = page;
    if (shown.length === visible.size && shown.every((msgId) => visible.has(msgId))) return;
    this.note("problem", `tab ${tab.id} shows ${shown}, and by its events ${[...visible]}`);
  }
}
