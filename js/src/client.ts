/** A client on a device: what apps call, and which tab is connected. */

import * as given from "./arguments.js";
import type { BodyOf, BodyWithin } from "./bodies.js";
import { connect, type Connection, type ConnectionEvent, type ConnectionOptions, type Token } from "./connection.js";
import { defaultEnvironment, type Environment } from "./environment.js";
import { GregorError, problemOf, stop, unavailable, type Problem } from "./errors.js";
import { Inbox } from "./inbox.js";
import { after, type When } from "./instant.js";
import { hasExactIntegers } from "./json.js";
import { liveReplica, type LiveReplica, type Operation, type ReplicaEvent } from "./live-replica.js";
import * as message from "./message.js";
import {
  newMsgId,
  type Category,
  type CreateOptions,
  type DeviceID,
  type DismissCategoryOptions,
  type Item,
  type Key,
  type Message,
  type MsgID,
  type OutOfBandMessage,
  type PutOptions,
  type UID,
} from "./message.js";
import type { OwnerRecord } from "./records.js";
import { Replica } from "./replica.js";
import { State } from "./state.js";
import { OFFLINE, type ConnectionStatus, type Status } from "./status.js";
import { openStore } from "./stores/indexeddb.js";

import { Store, storeName, type Changes, type Database } from "./stores/store.js";
import { joinTabs, type Tabs } from "./tabs.js";

/** The tab that is connected has not answered for so long. */
const TAB_MS = 70_000;

export interface GregorOptions {
  /** The address of the server, such as `https://example.com/gregor`. */
  readonly url: string;
  readonly user: UID;
  readonly token: Token;
  /** A random one, which is kept in the store, unless given. */
  readonly deviceId?: DeviceID;
  /** Where the replica is kept; IndexedDB, where there is one, unless given. */
  readonly store?: Database;
  /** Integers beyond 2^53 in bodies are read as bigint. */
  readonly exactIntegers?: boolean;
  /** What the client takes from the world around it. */
  readonly environment?: Environment;
}

/** This tab may have missed out-of-band messages. Created and dismissed items are never missed. */
export interface Missed {
  readonly type: "missed";
}

export type GregorEvent = ReplicaEvent | ConnectionEvent | Missed;

/** With `thisDevice`, the item is visible on this device only. */
type Scope = { readonly thisDevice?: false } | { readonly thisDevice: true; readonly deviceId?: never };

/** What tabs say to each other. */
type TabMessage =
  /** The tab that leads is connected like this, and this has happened. */
  | { readonly type: "connection"; readonly status: ConnectionStatus; readonly events: readonly ConnectionEvent[] }
  /** To the tab that leads, by one that has just been opened: say how you are connected. */
  | { readonly type: "ask" }
  /** To the tab that leads: connect again; or see whether there still is a connection. */
  | { readonly type: "reconnect" | "wake" }
  /** To the tab that leads: send this; and its answer. */
  | { readonly type: "send"; readonly id: string; readonly message: OutOfBandMessage }
  | { readonly type: "sent"; readonly id: string; readonly error: Problem | undefined }
  /** Somebody has logged out, and all is wiped. */
  | { readonly type: "logout" };

/**
 * One device of one user. It opens and works without a network too.
 *
 * The visible state is the server's state, minus the items hidden on this device, plus the messages
 * written on it. A write shows at once, and resolves when it is durable in the store; it is sent as
 * soon as there is a connection. If it rejects, nothing has changed. The client connects and
 * reconnects without limit, whatever the network, the nodes and the functions of the app do: `status`
 * says what is wrong. Only a `token` that is a string and is refused stops it, and an erase of the
 * user: until `reconnect`. After an erase nothing of the user is left, and nothing can be written
 * until then.
 *
 * The tabs of a browser that have the same server and user are one device: one of them is connected,
 * and all show the same.
 */
export class Gregor<Bodies = Record<string, unknown>> {
  readonly user: UID;
  /** The notifications of the user on this device. */
  readonly inbox: Inbox;
  /** Resolves when what was saved is shown, or cannot be used, which `status` says. */
  readonly ready: Promise<void>;
  private readonly _options: GregorOptions;
  private readonly _environment: Environment;
  private readonly _server: ConnectionOptions;
  private readonly _live: LiveReplica;
  private _store: Store | undefined;
  private _tabs: Tabs<TabMessage> | undefined;
  /** The term in which this tab leads. */
  private _term: number | undefined;
  private _connection: Connection | undefined;
  /** What the tab that leads has said. */
  private _leader = OFFLINE;
  /** Why the store cannot be used. */
  private _failure: GregorError | undefined;
  /** Why the store keeps nothing. */
  private _loss: GregorError | undefined;
  private _status = {} as Status;
  /** What subscribers have been told of: the status, and what is visible. */
  private _told: readonly unknown[] = [];
  private readonly _events: GregorEvent[] = [];
  private _isReporting = false;
  private readonly _listeners = new Map<string, Set<(event: never) => void>>();
  private readonly _subscribers = new Set<() => void>();
  /** Out-of-band messages that the tab that leads sends for this one. */
  private readonly _asked = new Map<string, (error: Problem | undefined) => void>();
  private readonly _unlisten: readonly (() => void)[];

  constructor(options: GregorOptions) {
    const { url, user, token, deviceId, exactIntegers, environment = defaultEnvironment() } = options;
    if (exactIntegers && !hasExactIntegers()) throw stop("setup", "this browser has no exact integers", "exactIntegers");
    if (typeof token !== "function") given.text("token", token, 8192);
    this.user = given.text("user", user, 128);
    this._options = options;
    this._environment = environment;
    this._server = { ...addressOf(url), user, token, exactIntegers };
    const device = deviceId === undefined ? newMsgId() : given.text("deviceId", deviceId, 128);
    this._live = liveReplica(Replica.load(new Map(), device), environment, {
      save: (changes, isTold) => this._save(changes, isTold),
      isComplete: () => !this._tabs?.hasGap(),
      onChange: (events) => this._report(events),
      onSaved: () => this._connection?.sendOutbox(),
      onTick: (mayHaveSlept) => this._onTick(mayHaveSlept),
    });
    this.inbox = new Inbox(this);
    this._unlisten = [
      environment.listen("online", () => this._wake()),
      environment.listen("visibilitychange", () => environment.isVisible() && this._wake()),
    ];
    this.ready = this._open().catch((error) => this._end(error));
  }

  // Writing. Each method resolves with the msg_id when the message is durable on this device.

  /** Creates an item on all devices of the user, or on one. It begins to be visible at `starts`, and
   * expires at `expires`: times, or durations from now. */
  async create<Name extends Category>(
    category: Name,
    body: BodyOf<Bodies, Name>,
    options: CreateOptions & Scope = {},
  ): Promise<MsgID> {
    return this._write(message.create(this.user, category, body, this._scoped(options)));
  }

  /** Creates an item in place of the one with the same key (by default, the category) and scope: of
   * all devices that put, the last one wins. */
  async put<Name extends Category>(
    category: Name,
    body: BodyOf<Bodies, Name>,
    options: PutOptions & Scope = {},
  ): Promise<MsgID> {
    return this._write(message.put(this.user, category, body, this._scoped(options)));
  }

  /** Dismisses items, on all devices. */
  async dismiss(...msgIds: MsgID[]): Promise<MsgID> {
    return this._write(message.dismiss(this.user, msgIds, { deviceId: this.deviceId }));
  }

  /** Dismisses the items of a category that this device sees, on all devices. With `prefix`: of all
   * categories that begin with it. With `scheduled`: also those that have not begun. Without
   * `endTime`: all items that this device shows now or has shown, and none that it has not yet been
   * told of. With `endTime: "0s"`: all up to now, wherever they are. */
  async dismissCategory(category: Category, options: DismissCategoryOptions = {}): Promise<MsgID> {
    const dismissal = message.dismissCategory(this.user, category, { deviceId: this.deviceId, ...options });
    return options.endTime == null ? this._dismissSeen(dismissal) : this._write(dismissal);
  }

  /** Dismisses the items with these keys that this device sees, on all devices, also those that have
   * not begun; but none that it has not yet been told of. */
  async dismissKey(...keys: Key[]): Promise<MsgID> {
    return this._dismissSeen(message.dismissKey(this.user, keys, { deviceId: this.deviceId }));
  }

  /** Makes a visible item begin again at a time, or after a duration from now, and resolves with the
   * id of the new item. Until then no device shows it. Rejects if this device does not show the item,
   * or if the time is not between now and its expiry. */
  async snooze(msgId: MsgID, until: When): Promise<MsgID> {
    const when = given.instant("until", until);
    return this.change((replica, now) => {
      const snoozed = replica.snoozed(msgId, when, now);
      replica.write(snoozed, now);
      return snoozed.msg_id;
    });
  }

  /** Hides an item on this device only. Idempotent. One that has not arrived is hidden when it comes. */
  async hide(msgId: MsgID): Promise<void> {
    given.text("msgId", msgId, 64);
    return this.change((replica) => replica.hide(msgId));
  }

  /** Sends an out-of-band message to the devices that are connected now: at once, and at most once.
   * Rejects with `unavailable` if there is no connection, or if it breaks before the node has
   * acknowledged (the message may have been delivered); with the node's error if that rejects it. */
  async outOfBand(system: string, body?: unknown): Promise<void> {
    const outOfBand = message.outOfBand(this.user, system, body);
    if (this._connection) return this._connection.sendOutOfBand(outOfBand);
    if (!this._leader.online) throw unavailable("there is no connection, and out-of-band messages are not queued");
    return this._ask(outOfBand);
  }

  /** Removes rejected messages from `rejected()`. Idempotent. */
  async discard(...msgIds: MsgID[]): Promise<void> {
    return this.change((replica) => replica.discard(msgIds));
  }

  /** Writes messages, in order: all of them in one transaction, or, if it rejects, none. */
  async writeAll(messages: readonly Message[]): Promise<void> {
    return this.change((replica, now) => replica.writeAll(messages, now));
  }

  /** Changes the replica, and resolves when that is saved. The operation throws before it has changed
   * anything, and may be run again. */
  async change<T>(operation: Operation<T>): Promise<T> {
    return this._live.change(operation);
  }

  private async _write(written: Message): Promise<MsgID> {
    await this.change((replica, now) => replica.write(written, now));
    return written.msg_id;
  }

  private async _dismissSeen(dismissal: Message): Promise<MsgID> {
    await this.change((replica, now) => replica.dismissSeen(dismissal, now));
    return dismissal.msg_id;
  }

  private _scoped<Options extends CreateOptions & Scope>({ thisDevice, ...options }: Options): CreateOptions {
    return thisDevice ? { ...options, deviceId: this.deviceId } : options;
  }

  // Reading

  /** The visible items whose category begins with `prefix`, by time: the same array, as long as none
   * of them changes. */
  items<Prefix extends Category = "">(
    prefix: Prefix = "" as Prefix,
  ): readonly Item<BodyWithin<Bodies, Prefix>>[] {
    return this._live.items(prefix) as readonly Item<BodyWithin<Bodies, Prefix>>[];
  }

  /** How many visible items have a category that begins with `prefix`. */
  count(prefix: Category = ""): number {
    return this._live.items(prefix).length;
  }

  /** The item with this key that is visible on this device. Of two, it is that of this device alone. */
  get<Name extends Key>(key: Name): Item<BodyOf<Bodies, Name>> | undefined {
    const item = this.replica.withKey(given.text("key", key), this._live.now());
    return item as Item<BodyOf<Bodies, Name>> | undefined;
  }

  /** The state visible on this device now, or at a stated time (a duration counts from now). Throws
   * `history-forgotten` for a time that the replica no longer knows. */
  state({ at }: { readonly at?: When } = {}): State {
    const now = this._live.now();
    return at === undefined
      ? new State(this._live.items(""), now)
      : this.replica.stateAt(after(given.instant("at", at), now));
  }

  /** The messages that a node has rejected: the last 1,000, until they are discarded. */
  rejected(): readonly { readonly message: Message; readonly error: Problem }[] {
    return this.replica.rejectedEntries();
  }

  get replica(): Replica {
    return this._live.replica;
  }

  get deviceId(): DeviceID {
    return this.replica.device.device_id;
  }

  /** How this client is doing now. */
  get status(): Status {
    const { online, synced, lastError, retryAt } = this._connectionStatus();
    const { replica, isStoreWorking } = this._live;
    const problem = this._failure ?? lastError ?? this._loss;
    const status: Status = {
      online,
      synced,
      durable: !!this._store?.durable && this._live.isOpen && !this._loss && !this._failure && isStoreWorking,
      unsent: replica.unsent().length,
      lastError: problem ? problemOf(problem) : null,
      retryAt,
      setAside: replica.setAside.size,
    };
    if (JSON.stringify(status) !== JSON.stringify(this._status)) this._status = Object.freeze(status);
    return this._status;
  }

  // Hearing

  /** Calls the listener after each change of what is visible, or of `status`. */
  subscribe(listener: () => void): () => void {
    const subscriber = () => listener(); // one that subscribes twice is called twice
    this._subscribers.add(subscriber);
    return () => void this._subscribers.delete(subscriber);
  }

  /** Calls the listener for each event of a type. What is visible when it begins to listen, and the
   * events `created` and `dismissed` since, are what is visible at any later time. */
  on<Type extends GregorEvent["type"]>(
    type: Type,
    listener: (event: Extract<GregorEvent, { readonly type: Type }>) => void,
  ): () => void {
    const listeners = this._listeners.get(type) ?? new Set();
    this._listeners.set(type, listeners.add(listener));
    return () => void listeners.delete(listener);
  }

  /** Resolves when the outbox is empty: the node has acknowledged or rejected each message. Rejects
   * if the client stops trying to connect, or is closed. */
  flush(): Promise<void> {
    return this._until(({ unsent }) => !unsent);
  }

  /** Resolves when the replica is connected and synced. Rejects as `flush`. */
  waitSynced(): Promise<void> {
    return this._until(({ synced }) => synced);
  }

  private async _until(isReached: (status: Status) => boolean): Promise<void> {
    await this.ready;
    await new Promise<void>((resolve, reject) => {
      const check = (): void => {
        const { isFinal, lastError } = this._connectionStatus();
        if (this._failure) reject(this._failure);
        else if (isReached(this.status)) resolve();
        else if (isFinal && lastError) reject(new GregorError(lastError)); // it is said in a moment
        else return;
        unsubscribe();
      };
      const unsubscribe = this.subscribe(check);
      check();
    });
  }

  // Ending, and beginning again

  /** Connects now instead of at `status.retryAt`, also where the client has stopped: for a button.
   * After an erase, this begins a new life of the user on this device. Without effect on a connection
   * that is there. */
  reconnect(): void {
    if (!this._connection) return this._tabs?.say({ type: "reconnect" });
    this._live.change((replica) => replica.inNewLife(), "told").catch(() => {});
    this._connection.reconnect();
  }

  /** Removes everything of the user from this device, in all tabs, and closes the client. Resolves
   * with the messages that no node has acknowledged: they are gone, too. */
  async logout(): Promise<readonly Message[]> {
    await this.ready;
    await this.change(() => {}); // the store may not be this user's
    const wiped = this._loss ? this.replica : Replica.load(await this._store!.wipe(), this.deviceId);
    this._tabs?.say({ type: "logout" });
    const unsent = wiped.unsent();
    await this._forget();
    return unsent;
  }

  /** Saves what is written, then closes; another tab may be connected from then on. What is visible
   * can still be read. Unsent messages stay in the store. Idempotent. */
  async close(): Promise<void> {
    await this.ready;
    this._onFollow();
    await this._live.drained();
    this._end(unavailable("the client is closed; create another one"));
  }

  private async _forget(): Promise<void> {
    this._onFollow();
    await this._live.drained();
    await this._live.reload(Replica.load(new Map(), this.deviceId));
    this._end(unavailable("somebody has logged out; create another client"));
  }

  /** Nothing can be written from now on. What was written is in the store. */
  private _end(error: GregorError): void {
    this._failure ??= error;
    for (const unlisten of this._unlisten) unlisten();
    this._live.end(this._failure);
    this._tabs?.close();
    this._store?.close();
    this._report([]);
  }

  // The store, and the other tabs

  private async _open(): Promise<void> {
    const { _environment: environment, _options: options } = this;
    const name = storeName(this._server.http, this.user);
    const onLost = (loss: GregorError) => this._onLost(loss);
    this._store = options.store ? new Store(options.store) : await openStore(name, environment, onLost);
    this._store.onWiped = () => void this._forget();
    await this._store.begin({ device_id: this.deviceId, uid: this.user, epoch: null, erased: false });
    this._tabs = joinTabs(name, this._store, environment, {
      onLead: (term) => this._onLead(term),
      onFollow: () => this._onFollow(),
      onChanges: (changes) => this._live.hear(changes),
      onReload: (records) => this._onReload(records),
      onMessage: (said) => this._onMessage(said),
    });
    await this._tabs.open();
    this._tabs.say({ type: "ask" });
  }

  private _onReload(records: Changes): void {
    const owner = records.get("owner/") as OwnerRecord | undefined;
    const replica = Replica.load(records, this._options.deviceId ?? owner?.device_id ?? this.deviceId);
    replica.ownedBy(this.user);
    if (this._live.isOpen) {
      void this._live.reload(replica);
      return this._report([{ type: "missed" }]);
    }
    this._live.open(replica);
    const { erased, epoch } = replica.device;
    if (erased) this._report([{ type: "erased", epoch: epoch ?? 0 }]); // the app may not have heard
  }

  private async _save(changes: Changes, isTold: boolean): Promise<Changes> {
    return this._loss ? changes : this._tabs!.save(changes, isTold ? this._term : undefined);
  }

  /** The store keeps nothing more. This tab goes on by itself, with what it has in memory. */
  private _onLost(loss: GregorError): void {
    this._loss = loss;
    if (!this._live.isOpen) return;
    this._tabs?.close();
    this._onLead(0);
  }

  private _onLead(term: number): void {
    this._term = term;
    this._live.change(() => {}, "told").catch(() => {}); // a new store does not say yet whose it is
    if (!this._environment.WebSocket) return;
    this._connection = connect(this._live, this._environment, this._server, (events) => {
      this._tell(events);
      this._report(events);
    });
  }

  private _onFollow(): void {
    this._connection?.close();
    this._connection = undefined;
    this._leader = OFFLINE;
    this._tabs?.say({ type: "ask" });
  }

  private _tell(events: readonly ConnectionEvent[]): void {
    this._tabs?.say({ type: "connection", status: this._connectionStatus(), events });
  }

  private _connectionStatus(): ConnectionStatus {
    return this._connection?.status() ?? this._leader;
  }

  private _onMessage(said: TabMessage): void {
    const connection = this._connection;
    switch (said.type) {
      case "connection":
        if (connection) return;
        this._leader = said.status;
        return this._report(said.events);
      case "ask":
        return connection && this._tell([]);
      case "reconnect":
        return connection && this.reconnect();
      case "wake":
        return connection?.wakeUp();
      case "send":
        connection
          ?.sendOutOfBand(said.message)
          .then(() => undefined, problemOf)
          .then((error) => this._tabs?.say({ type: "sent", id: said.id, error }));
        return;
      case "sent":
        return this._asked.get(said.id)?.(said.error);
      case "logout":
        void this._forget();
    }
  }

  /** Lets the tab that leads send a message. */
  private _ask(outOfBand: OutOfBandMessage): Promise<void> {
    const { setTimeout, clearTimeout } = this._environment;
    const id = newMsgId();
    return new Promise((resolve, reject) => {
      const onAnswer = (error?: Problem): void => {
        this._asked.delete(id);
        clearTimeout(timer);
        if (error) reject(new GregorError(error));
        else resolve();
      };
      const timer = setTimeout(() => onAnswer(unavailable("the tab that is connected did not answer")), TAB_MS);
      this._asked.set(id, onAnswer);
      this._tabs?.say({ type: "send", id, message: outOfBand });
    });
  }

  // Time and sleep

  private _wake(): void {
    if (this._connection) this._connection.wakeUp();
    else this._tabs?.say({ type: "wake" });
  }

  private _onTick(mayHaveSlept: boolean): void {
    // A tab that is not connected hears nothing that would explain a jump of its clock.
    const hasJumped = this._live.clock.wasSuspended(!!this._connection?.status().online);
    if (hasJumped || mayHaveSlept) this._connection?.wakeUp(true);
  }

  // Telling the app

  /** Tells the app soon: never while it calls, as while it renders. */
  private _report(events: readonly GregorEvent[]): void {

    this._events.push(...events);
    if (events.some(({ type }) => type === "erased")) this._connection?.stop(this.replica.erasure()!);
    if (!this._isReporting) queueMicrotask(() => this._reportNow());
    this._isReporting = true;
  }

  private _reportNow(): void {
    this._isReporting = false;
    for (const event of this._events.splice(0)) {
      for (const listener of [...(this._listeners.get(event.type) ?? [])]) call(() => listener(event as never));
    }
    const told = [this.status, this._live.version, this._failure];
    if (told.every((part, place) => part === this._told[place])) return;
    this._told = told;
    for (const listener of [...this._subscribers]) call(listener);
  }
}

/** Calls what is the app's. If it throws, that is reported as any error of a page is. */
function call(listener: () => void): void {
  try {
    listener();
  } catch (error) {
    queueMicrotask(() => {
      throw error;
    });
  }
}

function addressOf(url: string): { readonly http: string; readonly ws: string } {
  const [, secure, rest] = /^(?:http|ws)(s?)(:\/\/[^/?#]+[^?#]*?)\/*(?:[?#].*)?$/.exec(url) ?? [];
  if (!rest) throw stop("setup", `${url} is not the URL of a server, such as https://example.com`, "url");
  return { http: `http${secure}${rest}`, ws: `ws${secure}${rest}` };
}

/** A client of one user on this device, which opens at once. `Bodies` names the types of bodies by
 * category or key: `createGregor<{ theme: "dark" | "light"; [room: `chat.${string}`]: Message }>(…)`. */
export const createGregor = <Bodies = Record<string, unknown>>(
  options: GregorOptions,
): Gregor<Bodies> => new Gregor(options);
