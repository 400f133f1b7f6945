/**
 * An inbox, as a thin layer over items with keys: `spec/inbox.md`.
 *
 * A notification is an item of the category `inbox.<topic>` with a key. While it is unread, there is
 * a second item, its marker, of the category `unread.<topic>` under the key `unread:` + its key. So
 * the badge is a count of markers, and what is done to a notification is a dismissal or a `put` by
 * key. The inbox stands on what a client offers to every app: an app could have written it.
 */

import * as given from "./arguments.js";
import { invalid } from "./errors.js";
import { after, type Time, type TimeOrOffset, type When } from "./instant.js";
import {
  byteCompare,
  newMsgId,
  present,
  type DeviceID,
  type Item,
  type Key,
  type Message,
  type MsgID,
  type Range,
  type UID,
} from "./message.js";
import { validFields } from "./notification-body.js";
import type { Replica } from "./replica.js";
import { snoozed } from "./snooze.js";
import { compareItems, type State } from "./state.js";

/** What a notification is about: the rest of its category, dotted like it. */
export type Topic = string;

export const ITEMS = "inbox.";
export const MARKERS = "unread.";
/** Before the key and the msg_id of a notification: those of its marker. */
export const MARKER = "unread:";

export const MAX_TOPIC = 247; // with `unread.` before it and a dot behind, a category
export const MAX_ITEM_KEY = 248; // with `unread:` before it, a key

/** Throws unless it is one or more segments, with a dot between them. */
export function checkTopic(topic: Topic | undefined): void {
  if (topic === undefined) return;
  if (given.text("topic", topic, MAX_TOPIC).split(".").includes("")) throw invalid("topic", "has an empty segment at a dot");
}

// What a device shows

/** A notification that is shown, and its marker while it is unread. */
export class InboxEntry {
  constructor(
    readonly item: Item,
    readonly marker: Item | undefined,
  ) {}

  get key(): Key {
    return keyOf(this.item);
  }

  get topic(): Topic {
    return topicOf(this.item);
  }

  get unread(): boolean {
    return !!this.marker;
  }

  /** What may be shown of the body: its fields, without those that no notification has, such as a
   * `url` that is a script. */
  get fields(): Readonly<Record<string, unknown>> {
    return validFields(this.item.body);
  }
}

const keyOf = (item: Item): Key => item.key ?? "";

/** What is said by the category of a notification, or of a marker. */
const topicOf = (item: Item): Topic => item.category.slice(item.category.indexOf(".") + 1);

const isMarker = (item: Item): boolean =>
  item.category.startsWith(MARKERS) && keyOf(item).startsWith(MARKER);

/** Whether it is an item as a backend creates notifications. */
const isEntry = (item: Item): boolean =>
  item.category.startsWith(ITEMS) &&
  !(item.key ?? MARKER).startsWith(MARKER) &&
  given.byteLength(keyOf(item)) <= MAX_ITEM_KEY &&
  given.byteLength(item.category) <= ITEMS.length + MAX_TOPIC;

const isOfInbox = (item: Item): boolean => isMarker(item) || isEntry(item);

/** The key of a notification, or of the one that a marker marks. */
const entryKey = (item: Item): Key => keyOf(item).slice(isMarker(item) ? MARKER.length : 0);

/** The key and the scope of a notification, which its marker shares. NUL is in neither. */
const place = (item: Item): string => `${entryKey(item)}\0${item.device_id ?? ""}`;

const isWithin = (topic: Topic, wanted: Topic | undefined): boolean =>
  wanted === undefined || `${topic}.`.startsWith(`${wanted}.`);

/** The notifications among the visible items, the newest first; with `topic`, those of it and of
 * the topics below it. */
function entries(items: readonly Item[], topic?: Topic): InboxEntry[] {
  const markers = new Map(items.filter(isMarker).map((item) => [place(item), item]));
  return items
    .filter(isEntry)
    .map((item) => new InboxEntry(item, markers.get(place(item))))
    .filter((entry) => isWithin(entry.topic, topic))
    .reverse();
}

// What a person does

/** How to undo what was done to notifications: the items that it took away, and the msg_ids of
 * those that it put in their place. */
export interface Undo {
  readonly items: readonly Item[];
  readonly written: readonly MsgID[];
}

/** The undo of what took these items away; undefined if there was nothing to do. */
const undoOf = (items: readonly Item[], written: readonly MsgID[] = []): Undo | undefined =>
  items.length ? { items, written } : undefined;

/** The keys of markers. */
const markerKeys = (keys: readonly Key[]): Key[] => keys.map((key) => MARKER + key);

/** The ranges of all markers, or of those of a topic and of the topics below it. */
const markerRanges = (topic: Topic | undefined): Range[] =>
  topic === undefined
    ? [{ category: MARKERS, prefix: true }]
    : [{ category: MARKERS + topic }, { category: `${MARKERS}${topic}.`, prefix: true }];

/** The message that puts an item again. */
const again = (uid: UID, item: Item, now: Time): Message =>
  present({
    uid,
    msg_id: newMsgId(),
    device_id: item.device_id,
    creation: {
      category: item.category,
      body: item.body,
      ...present({
        expires: instantOf(item.expires_at),
        starts: instantOf(item.starts_at, now),
        key: item.key,
      }),
    },
  });

/** An instant, if it is still to come. */
const instantOf = (time = 0, now: Time = 0): TimeOrOffset | undefined =>
  time > now ? { time } : undefined;

/** The messages that create the markers that these notifications lack. */
function markedUnread(uid: UID, live: readonly Item[], now: Time): Message[] {
  const marked = new Set(live.filter(isMarker).map(place));
  return live
    .filter((item) => isEntry(item) && !marked.has(place(item)))
    .map((item) =>
      again(uid, { ...item, category: MARKERS + topicOf(item), body: null, key: MARKER + keyOf(item) }, now),
    );
}

/** The messages that undo something, given what is live under its keys now.
 *
 * What another device or the backend has put under a key since is newer, and stays. A marker goes
 * only where a notification is, or comes back. */
function undone(uid: UID, { items, written }: Undo, live: readonly Item[], now: Time): Message[] {
  const own = (item: Item): string => `${isMarker(item)}${place(item)}`;
  const kept = new Set(live.filter((item) => !written.includes(item.msg_id)).map(own));
  const missing = inOrder(items).filter(
    (item) => (item.expires_at ?? Infinity) > now && !kept.has(own(item)),
  );
  const there = new Set([...live, ...missing.filter((item) => !isMarker(item))].map(place));
  return missing
    .filter((item) => !isMarker(item) || there.has(place(item)))
    .map((item) => again(uid, item, now));
}

/** In the order in which they are to be stored: the notifications before the markers. */
const inOrder = (items: readonly Item[]): Item[] =>
  [...items].sort((a, b) => +isMarker(a) - +isMarker(b) || compareItems(a, b));

/** What an inbox needs of a client. */
export interface Device {
  readonly user: UID;
  readonly deviceId: DeviceID;
  readonly replica: Pick<Replica, "liveWithKey">;
  state(): State;
  dismissKey(...keys: Key[]): Promise<MsgID>;
  writeAll(messages: readonly Message[]): Promise<void>;
  change<T>(operation: (replica: Replica, now: Time) => T, messages?: readonly Message[]): Promise<T>;
}

/**
 * The notifications that a device shows, each read or unread.
 *
 * What is read comes from the replica, without waiting. What is written is durable on the device
 * when the promise resolves, in one transaction, and is sent as soon as there is a connection.
 *
 * A key names a notification. A key that the inbox does not have is left out: another device may
 * just have archived it. What is done reaches what this device has been told: a newer notification
 * under the same key stays, and stays unread.
 */
export class Inbox {
  constructor(private readonly _device: Device) {}

  /** The notifications, the newest first; with `topic`, those of it and of the topics below it (of
   * `likes`, also `likes.photo7`); with `limit`, the first so many. */
  list(topic?: Topic, { limit }: { readonly limit?: number } = {}): readonly InboxEntry[] {
    checkTopic(topic);
    return entries(this._device.state().items, topic).slice(0, limit);
  }

  /** How many notifications are unread; with `topic`, of it and of the topics below it. */
  unreadCount(topic?: Topic): number {
    return this.list(topic).filter((entry) => entry.unread).length;
  }

  /** How many notifications are unread, by the first segment of their topics; no entry is 0. */
  unreadByTopic(): ReadonlyMap<Topic, number> {
    const counts = new Map<Topic, number>();
    for (const { topic, unread } of this.list()) {
      const [first = ""] = topic.split(".");
      if (unread) counts.set(first, (counts.get(first) ?? 0) + 1);
    }
    return new Map([...counts].sort(([a], [b]) => byteCompare(a, b)));
  }

  // Each of these resolves to how to undo it, for `undo`, and to undefined if there was nothing to do.

  /** Marks notifications as read, on all devices. */
  async read(...keys: Key[]): Promise<Undo | undefined> {
    return this._dismiss(markerKeys(checked(keys)));
  }

  /** Marks all notifications that this device shows as read, on all devices; with `topic`, those of
   * it and of the topics below it. What this device has not been told of stays unread, and so does
   * what has not begun. */
  async readAll(topic?: Topic): Promise<Undo | undefined> {
    checkTopic(topic);
    const taken = this._device
      .state()
      .items.filter((item) => isMarker(item) && isWithin(topicOf(item), topic));
    if (taken.length) {
      const message = {
        uid: this._device.user,
        msg_id: newMsgId(),
        device_id: this._device.deviceId,
        dismissal: { ranges: markerRanges(topic) },
      };
      await this._device.change((replica, now) => replica.dismissSeen(message, now), [message]);
    }
    return undoOf(taken);
  }

  /** Removes notifications, on all devices. */
  async archive(...keys: Key[]): Promise<Undo | undefined> {
    return this._dismiss([...checked(keys), ...markerKeys(keys)]);
  }

  /** Hides a notification until later, on all devices, also on those that are offline then. If it is
   * unread, it is unread when it comes back. A duration counts from now. Throws unless the time lies
   * between now and the expiry of the notification. */
  async snooze(key: Key, until: When): Promise<Undo | undefined> {
    const now = this._now();
    const instant = { time: after(given.instant("until", until), now) };
    const live = this._live(withMarkers(checked([key])));
    const messages = inOrder(live).map((item) => snoozed(this._device.user, item, instant, now));
    await this._write(messages);
    return undoOf(live, messages.map((message) => message.msg_id));
  }

  // These two resolve to whether they did anything.

  /** Marks notifications as unread, on all devices. */
  async unread(...keys: Key[]): Promise<boolean> {
    return this._write(markedUnread(this._device.user, this._live(withMarkers(checked(keys))), this._now()));
  }

  /** Puts again what was taken away, as new messages: what was archived comes back as the newest.
   * What another device or the backend has put under a key since then stays. Idempotent. */
  async undo(undo: Undo): Promise<boolean> {
    const live = this._live(withMarkers(undo.items.map(entryKey)));
    return this._write(undone(this._device.user, undo, live, this._now()));
  }

  private async _dismiss(keys: readonly Key[]): Promise<Undo | undefined> {
    const taken = this._live(keys);
    if (taken.length) await this._device.dismissKey(...new Set(taken.map(keyOf)));
    return undoOf(taken);
  }

  private async _write(messages: readonly Message[]): Promise<boolean> {
    if (messages.length) await this._device.writeAll(messages);
    return messages.length > 0;
  }

  private _now(): Time {
    return this._device.state().as_of;
  }

  /** What the inbox has under these keys, begun or not. It has nothing that is hidden. */
  private _live(keys: readonly Key[]): Item[] {
    const { replica } = this._device;
    const now = this._now();
    return [...new Set(keys)].flatMap((key) => replica.liveWithKey(key, now)).filter(isOfInbox);
  }
}

/** The keys of notifications, each followed by that of its marker. */
const withMarkers = (keys: readonly Key[]): Key[] => keys.flatMap((key) => [key, MARKER + key]);

const checked = (keys: readonly Key[]): readonly Key[] => given.texts("keys", keys, MAX_ITEM_KEY);
