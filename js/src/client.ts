/** A client on a device: what apps call, and which tab is connected. */

import * as given from "./arguments.js";
import type { BodyOf, BodyWithin } from "./bodies.js";
import { connect, type Connection, type ConnectionEvent, type ConnectionOptions, type Token } from "./connection.js";
import { defaultEnvironment, inTime, type Environment } from "./environment.js";
import { GregorError, problemOf, stop, unavailable, type Problem } from "./errors.js";
import { inboxOf, type Inbox } from "./inbox.js";
import { after, type When } from "./instant.js";
import { hasExactIntegers } from "./json.js";
import { liveReplica, type Operation, type ReplicaEvent } from "./live-replica.js";
import * as message from "./message.js";
import {
  newMsgId,
  type Category,
  type CreateOptions,
  type DeviceID,
  type DismissCategoryOptions,
  type DismissKeyOptions,
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
import { memoryDatabase } from "./stores/memory.js";

import { Store, storeName, type Changes, type Database } from "./stores/store.js";
import { joinTabs, type Tabs } from "./tabs.js";

/** The tab that is connected has not answered for so long. */
const TAB_MS = 70_000;
/** What subscribers hear, beside the types of events. */
const CHANGE = "change";

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
export interface Gregor<Bodies = Record<string, unknown>> {
  readonly user: UID;
  readonly deviceId: DeviceID;
  readonly replica: Replica;
  /** The notifications of the user on this device. */
  readonly inbox: Inbox;
  /** Resolves when what was saved is shown, or cannot be used, which `status` says. */
  readonly ready: Promise<void>;
  /** How this client is doing now. */
  readonly status: Status;

  // Writing. Each method resolves with the msg_id when the message is durable on this device.

  /** Creates an item on all devices of the user, or on one. It begins to be visible at `starts`, and
   * expires at `expires`: times, or durations from now. */
  create<Name extends Category>(
    category: Name,
    body: BodyOf<Bodies, Name>,
    options?: CreateOptions & Scope,
  ): Promise<MsgID>;
  /** Creates an item in place of the one with the same key (by default, the category) and scope: of
   * all devices that put, the last one wins. */
  put<Name extends Category>(
    category: Name,
    body: BodyOf<Bodies, Name>,
    options?: PutOptions & Scope,
  ): Promise<MsgID>;
  /** Dismisses items, on all devices. */
  dismiss(...msgIds: MsgID[]): Promise<MsgID>;
  /** Dismisses the items of a category that this device sees, on all devices. With `prefix`: of all
   * categories that begin with it. With `scheduled`: also those that have not begun. Without
   * `endTime`: all items that this device shows now or has shown, and none that it has not yet been
   * told of. With `endTime: "0s"`: all up to now, wherever they are. */
  dismissCategory(category: Category, options?: DismissCategoryOptions): Promise<MsgID>;
  /** Dismisses the items with these keys that this device sees, on all devices, also those that have
   * not begun. `endTime` is as in `dismissCategory`. */
  dismissKey(keys: Key | readonly Key[], options?: DismissKeyOptions): Promise<MsgID>;
  /** Makes a visible item begin again at a time, or after a duration from now, and resolves with the
   * id of the new item. Until then no device shows it. Rejects if this device does not show the item,
   * or if the time is not between now and its expiry. */
  snooze(msgId: MsgID, until: When): Promise<MsgID>;
  /** Hides an item on this device only. Idempotent. One that has not arrived is hidden when it comes. */
  hide(msgId: MsgID): Promise<void>;
  /** Sends an out-of-band message to the devices that are connected now: at once, and at most once.
   * Rejects with `unavailable` if there is no connection, or if it breaks before the node has
   * acknowledged (the message may have been delivered); with the node's error if that rejects it. */
  outOfBand(system: string, body?: unknown): Promise<void>;
  /** Removes rejected messages from `rejected()`. Idempotent. */
  discard(...msgIds: MsgID[]): Promise<void>;
  /** Writes messages, in order: all of them in one transaction, or, if it rejects, none. */
  writeAll(messages: readonly Message[]): Promise<void>;
  /** Changes the replica, and resolves when that is saved. The operation throws before it has changed
   * anything, and may be run again. */
  change<T>(operation: Operation<T>): Promise<T>;

  // Reading

  /** The visible items whose category begins with `prefix`, by time: the same array, as long as none
   * of them changes. */
  items<Prefix extends Category = "">(prefix?: Prefix): readonly Item<BodyWithin<Bodies, Prefix>>[];
  /** How many visible items have a category that begins with `prefix`. */
  count(prefix?: Category): number;
  /** The item with this key that is visible on this device. Of two, it is that of this device alone. */
  get<Name extends Key>(key: Name): Item<BodyOf<Bodies, Name>> | undefined;
  /** The state visible on this device now, or at a stated time (a duration counts from now). Throws
   * `history-forgotten` for a time that the replica no longer knows. */
  state(options?: { readonly at?: When }): State;
  /** The messages that a node has rejected: the last 1,000, until they are discarded. */
  rejected(): readonly { readonly message: Message; readonly error: Problem }[];

  // Hearing

  /** Calls the listener after each change of what is visible, or of `status`. */
  subscribe(listener: () => void): () => void;
  /** Calls the listener for each event of a type. What is visible when it begins to listen, and the
   * events `created` and `dismissed` since, are what is visible at any later time. */
  on<Type extends GregorEvent["type"]>(
    type: Type,
    listener: (event: Extract<GregorEvent, { readonly type: Type }>) => void,
  ): () => void;
  /** Resolves when the outbox is empty: the node has acknowledged or rejected each message. Rejects
   * if the client stops trying to connect, or is closed. */
  flush(): Promise<void>;
  /** Resolves when the replica is connected and synced. Rejects as `flush`. */
  waitSynced(): Promise<void>;

  // Ending, and beginning again

  /** Connects now instead of at `status.retryAt`, also where the client has stopped: for a button.
   * After an erase, this begins a new life of the user on this device. Without effect on a connection
   * that is there. */
  reconnect(): void;
  /** Removes everything of the user from this device, in all tabs, and closes the client. Resolves
   * with the messages that no node has acknowledged: they are gone, too. */
  logout(): Promise<readonly Message[]>;
  /** Saves what is written, then closes; another tab may be connected from then on. What is visible
   * can still be read. Unsent messages stay in the store. Idempotent. */
  close(): Promise<void>;
}

/** A client of one user on this device, which opens at once. `Bodies` names the types of bodies by
 * category or key: `createGregor<{ theme: "dark" | "light"; [room: `chat.${string}`]: Message }>(…)`. */
export function createGregor<Bodies = Record<string, unknown>>(options: GregorOptions): Gregor<Bodies> {
  const { url, token, exactIntegers, environment = defaultEnvironment() } = options;
  if (exactIntegers && !hasExactIntegers()) throw stop("setup", "this browser has no exact integers", "exactIntegers");
  if (typeof token !== "function") given.text("token", token, 8192);
  const user = given.text("user", options.user, 128);
  const server: ConnectionOptions = { ...addressOf(url), user, token, exactIntegers };
  let store: Store | undefined;
  let tabs: Tabs<TabMessage> | undefined;
  /** The term in which this tab leads. */
  let term: number | undefined;
  let connection: Connection | undefined;
  /** What the tab that leads has said. */
  let leader = OFFLINE;
  /** Why the store cannot be used. */
  let failure: GregorError | undefined;
  /** Why the store keeps nothing. */
  let loss: GregorError | undefined;
  let lastStatus = {} as Status;
  /** What subscribers have been told of: the status, and what is visible. */
  let told: readonly unknown[] = [];
  const events: GregorEvent[] = [];
  let isReporting = false;
  /** By the types of events; subscribers hear of a change. */
  const listeners = new Map<string, Set<(event: never) => void>>();
  /** Out-of-band messages that the tab that leads sends for this one. */
  const asked = new Map<string, (error: Problem | undefined) => void>();

  const device = options.deviceId === undefined ? newMsgId() : given.text("deviceId", options.deviceId, 128);
  const live = liveReplica(Replica.load(new Map(), device), environment, {
    save: async (changes, isTold) => (loss ? changes : tabs!.save(changes, isTold ? term : undefined)),
    isComplete: () => !tabs?.hasGap(),
    onChange: report,
    onSaved: () => connection?.sendOutbox(),
    onTick(mayHaveSlept) {
      // A tab that is not connected hears nothing that would explain a jump of its clock.
      const hasJumped = live.clock.wasSuspended(!!connection?.status().online);
      if (hasJumped || mayHaveSlept) connection?.wakeUp(true);
    },
  });
  const unlisten = [
    environment.listen("online", wake),
    environment.listen("visibilitychange", () => environment.isVisible() && wake()),
  ];

  // Writing

  const { change } = live;
  const deviceId = (): DeviceID => live.replica.device.device_id;

  async function write(written: Message): Promise<MsgID> {
    await change((replica, now) => replica.write(written, now));
    return written.msg_id;
  }

  /** Dismisses up to a time, or what this device sees. */
  async function dismissUpTo(endTime: When | undefined, dismissal: Message): Promise<MsgID> {
    if (endTime != null) return write(dismissal);
    await change((replica, now) => replica.dismissSeen(dismissal, now));
    return dismissal.msg_id;
  }

  const scoped = ({ thisDevice, ...options }: CreateOptions & Scope): CreateOptions =>
    thisDevice ? { ...options, deviceId: deviceId() } : options;

  /** Lets the tab that leads send a message. */
  function ask(message: OutOfBandMessage): Promise<void> {
    const id = newMsgId();
    const answer = new Promise<void>((resolve, reject) =>
      asked.set(id, (error) => (error ? reject(new GregorError(error)) : resolve())),
    );
    tabs?.say({ type: "send", id, message });
    return inTime(environment, answer, TAB_MS, "the tab that is connected did not answer in time").finally(() =>
      asked.delete(id),
    );
  }

  // Reading

  function state({ at }: { readonly at?: When } = {}): State {
    const now = live.now();
    return at === undefined
      ? new State(live.items(""), now)
      : live.replica.stateAt(after(given.instant("at", at), now));
  }

  const connectionStatus = (): ConnectionStatus => connection?.status() ?? leader;

  function status(): Status {
    const { online, synced, lastError, retryAt } = connectionStatus();
    const problem = failure ?? lastError ?? loss;
    const status: Status = {
      online,
      synced,
      durable: !!store?.durable && live.isOpen && !loss && !failure && live.isStoreWorking,
      unsent: live.replica.unsent().length,
      lastError: problem ? problemOf(problem) : null,
      retryAt,
      setAside: live.replica.setAside.size,
    };
    if (JSON.stringify(status) !== JSON.stringify(lastStatus)) lastStatus = Object.freeze(status);
    return lastStatus;
  }

  // Hearing

  function on(type: string, listener: (event: never) => void): () => void {
    const heard = (event: never): void => listener(event); // one that listens twice is called twice
    const others = listeners.get(type) ?? new Set();
    listeners.set(type, others.add(heard));
    return () => void others.delete(heard);
  }

  /** Calls what is the app's. If it throws, that is reported as any error of a page is. */
  function tell(type: string, event?: GregorEvent): void {
    for (const listener of listeners.get(type) ?? []) queueMicrotask(() => listener(event as never));
  }

  /** Tells the app soon: never while it calls, as while it renders. */
  function report(news: readonly GregorEvent[]): void {
    events.push(...news);
    if (news.some(({ type }) => type === "erased")) connection?.stop(live.replica.erasure()!);
    if (!isReporting) queueMicrotask(reportNow);
    isReporting = true;
  }

  function reportNow(): void {
    isReporting = false;
    for (const event of events.splice(0)) tell(event.type, event);
    const now = [status(), live.version, failure];
    if (now.every((part, place) => part === told[place])) return;
    told = now;
    tell(CHANGE);
  }

  async function until(isReached: (status: Status) => boolean): Promise<void> {
    await ready;
    await new Promise<void>((resolve, reject) => {
      const check = (): void => {
        const { isFinal, lastError } = connectionStatus();
        if (failure) reject(failure);
        else if (isReached(status())) resolve();
        else if (isFinal && lastError) reject(new GregorError(lastError)); // it is said in a moment
        else return;
        unsubscribe();
      };
      const unsubscribe = on(CHANGE, check);
      check();
    });
  }

  // Ending, and beginning again

  function reconnect(): void {
    if (!connection) return tabs?.say({ type: "reconnect" });
    change((replica) => replica.inNewLife(), "told").catch(() => {});
    connection.reconnect();
  }

  async function close(): Promise<void> {
    await ready;
    onFollow();
    await drained();
    end(unavailable("the client is closed; create another one"));
  }

  async function forget(): Promise<void> {
    onFollow();
    await drained();
    await live.reload(Replica.load(new Map(), deviceId()));
    end(unavailable("somebody has logged out; create another client"));
  }

  /** Resolves when what was queued is saved, or could not be. */
  const drained = (): Promise<void> => change(() => {}).catch(() => {});

  /** Nothing can be written from now on. What was written is in the store. */
  function end(error: GregorError): void {
    failure ??= error;
    for (const stop of unlisten) stop();
    live.end(failure);
    tabs?.close();
    store?.close();
    report([]);
  }

  // The store, and the other tabs

  async function open(): Promise<void> {
    const name = storeName(server.http, user);
    const opened = options.store ? new Store(options.store) : await openStore(name, environment, onLost);
    await openWith(opened, name).catch((error) => {
      if (error.code !== "unavailable") throw error;
      // As where there is no store: a full disk, or a browser that does not answer.
      tabs?.close();
      opened.close();
      onLost(error);
      return openWith(new Store(memoryDatabase()), name);
    });
    tabs?.say({ type: "ask" });
  }

  async function openWith(opened: Store, name: string): Promise<void> {
    store = opened;
    store.onWiped = () => void forget();
    await store.begin({ device_id: deviceId(), uid: user, epoch: null, erased: false });
    tabs = joinTabs(name, store, environment, {
      onLead,
      onFollow,
      onCannotLead,
      onChanges: live.hear,
      onReload,
      onMessage,
      beat: () => said([]),
    });
    await tabs.open();
  }

  function onReload(records: Changes): void {
    const owner = records.get("owner/") as OwnerRecord | undefined;
    const replica = Replica.load(records, options.deviceId ?? owner?.device_id ?? deviceId());
    replica.ownedBy(user);
    if (live.isOpen) {
      void live.reload(replica);
      return report([{ type: "missed" }]);
    }
    live.open(replica);
    const { erased, epoch } = replica.device;
    if (erased) report([{ type: "erased", epoch: epoch ?? 0 }]); // the app may not have heard
  }

  /** The store keeps nothing more. This tab goes on by itself, with what it has in memory. */
  function onLost(reason: GregorError): void {
    loss = reason;
    if (!live.isOpen) return;
    tabs?.close();
    onLead(0);
  }

  function onLead(begun: number): void {
    term = begun;
    change(() => {}, "told").catch(() => {}); // a new store does not say yet whose it is
    if (!environment.WebSocket) return;
    connection = connect(live, environment, server, (events) => {
      tabs?.say(said(events));
      report(events);
    });
  }

  function onCannotLead(reason: GregorError): void {
    leader = { ...OFFLINE, lastError: problemOf(reason) };
    report([]);
  }

  function onFollow(): void {
    connection?.close();
    connection = undefined;
    leader = OFFLINE;
    tabs?.say({ type: "ask" });
  }

  /** What the tab that leads says of its connection. */
  const said = (events: readonly ConnectionEvent[]): TabMessage => ({
    type: "connection",
    status: connectionStatus(),
    events,
  });

  function onMessage(heard: TabMessage): void {
    if (heard.type === "logout") return void forget();
    if (heard.type === "sent") return asked.get(heard.id)?.(heard.error);
    if (heard.type === "connection" && !connection) {
      leader = heard.status;
      return report(heard.events);
    }
    if (connection) onRequest(connection, heard);
  }

  /** This tab leads, and another one asks something of it. */
  function onRequest(connection: Connection, heard: TabMessage): void {
    switch (heard.type) {
      case "ask":
        return tabs?.say(said([]));
      case "reconnect":
        return reconnect();
      case "wake":
        return connection.wakeUp();
      case "send":
        connection
          .sendOutOfBand(heard.message)
          .then(() => undefined, problemOf)
          .then((error) => tabs?.say({ type: "sent", id: heard.id, error }));
    }
  }

  function wake(): void {
    if (connection) connection.wakeUp();
    else tabs?.say({ type: "wake" });
  }

  const ready = open().catch(end);
  return {
    user,
    get deviceId() {
      return deviceId();
    },
    get replica() {
      return live.replica;
    },
    inbox: inboxOf({ user, state, change }),
    ready,
    get status() {
      return status();
    },
    create: async (category, body, options = {}) => write(message.create(user, category, body, scoped(options))),
    put: async (category, body, options = {}) => write(message.put(user, category, body, scoped(options))),
    dismiss: async (...msgIds) => write(message.dismiss(user, msgIds, { deviceId: deviceId() })),
    dismissCategory: async (category, options = {}) =>
      dismissUpTo(options.endTime, message.dismissCategory(user, category, { deviceId: deviceId(), ...options })),
    dismissKey: async (keys, options = {}) =>
      dismissUpTo(options.endTime, message.dismissKey(user, [keys].flat(), { deviceId: deviceId(), ...options })),
    async snooze(msgId, until) {
      const when = given.instant("until", until);
      return change((replica, now) => {
        const snoozed = replica.snoozed(msgId, when, now);
        replica.write(snoozed, now);
        return snoozed.msg_id;
      });
    },
    async hide(msgId) {
      given.text("msgId", msgId, 64);
      return change((replica) => replica.hide(msgId));
    },
    async outOfBand(system, body) {
      const outOfBand = message.outOfBand(user, system, body);
      if (connection) return connection.sendOutOfBand(outOfBand);
      if (!leader.online) throw unavailable("there is no connection");
      return ask(outOfBand);
    },
    discard: (...msgIds) => change((replica) => replica.discard(msgIds)),
    writeAll: (messages) => change((replica, now) => replica.writeAll(messages, now)),
    change: (operation) => change(operation),
    items: (prefix) => live.items(prefix ?? "") as never,
    count: (prefix = "") => live.items(prefix).length,
    get: (key) => live.replica.withKey(given.text("key", key), live.now()) as never,
    state,
    rejected: () => live.replica.rejectedEntries(),
    subscribe: (listener) => on(CHANGE, listener),
    on,
    flush: () => until(({ unsent }) => !unsent),
    waitSynced: () => until(({ synced }) => synced),
    reconnect,
    async logout() {
      await ready;
      await change(() => {}); // the store may not be this user's
      const wiped = loss ? live.replica : Replica.load(await store!.wipe(), deviceId());
      tabs?.say({ type: "logout" });
      const unsent = wiped.unsent();
      await forget();
      return unsent;
    },
    close,
  };
}

function addressOf(url: string): { readonly http: string; readonly ws: string } {
  const [, secure, rest] = /^(?:http|ws)(s?)(:\/\/[^/?#]+[^?#]*?)\/*(?:[?#].*)?$/.exec(url) ?? [];
  if (!rest) throw stop("setup", `${url} is no URL such as https://example.com`, "url");
  return { http: `http${secure}${rest}`, ws: `ws${secure}${rest}` };
}
