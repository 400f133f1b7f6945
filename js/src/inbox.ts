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
import type { Time, When } from "./instant.js";
import {
  newMsgId,
  type Item,
  type Key,
  type Message,
  type MsgID,
  type Range,
  type UID,
} from "./message.js";
import { validFields, type NotificationFields } from "./notification-body.js";
import type { Replica } from "./replica.js";
import { again, snoozed } from "./snooze.js";
import { compareItems, type State } from "./state.js";
import { hasExpired } from "./visibility.js";

/** What a notification is about: the rest of its category, dotted like it. */
export type Topic = string;

export const ITEMS = "inbox.";
export const MARKERS = "unread.";
/** Before the key and the msg_id of a notification: those of its marker. */
export const MARKER = "unread:";

/** With `unread:` before it, it is a key. */
export const MAX_ITEM_KEY = 248;
/** With `unread.` before it and a dot behind, it is a category. */
const MAX_TOPIC = 247;

/** With what the categories of a topic, and of those below it, begin after `inbox.` and with a dot at
 * their end. Throws unless the topic is one or more segments, with a dot between them. */
export function topicPrefix(topic: Topic | undefined): string {
  if (topic === undefined) return "";
  if (/(^|\.)(\.|$)/.test(given.text("topic", topic, MAX_TOPIC))) throw invalid("topic", "has an empty segment");
  return `${topic}.`;
}

// What a device shows

/** A notification that is shown. */
export interface InboxEntry {
  readonly item: Item;
  /** What it has while it is unread. */
  readonly marker: Item | undefined;
  readonly key: Key;
  readonly topic: Topic;
  readonly unread: boolean;
  /** What may be shown of the body: its fields, without those that no notification has, such as a
   * `url` that is a script. */
  readonly fields: NotificationFields;
}

const keyOf = ({ key = "" }: Item): Key => key;

/** The rest of the category of a notification, or of a marker. */
const topicOf = ({ category }: Item): Topic => category.slice(category.indexOf(".") + 1);

/** A key and its scope. That of a marker is `unread:` and that of its notification. */
const placeOf = ({ key, device_id = "" }: Item): string => `${key}\0${device_id}`;

const isMarker = (item: Item): boolean =>
  item.category.startsWith(MARKERS) && keyOf(item).startsWith(MARKER);

/** Whether it is an item as backends create notifications. */
const isEntry = (item: Item): boolean =>
  item.category.startsWith(ITEMS) &&
  given.isText(item.key, MAX_ITEM_KEY) &&
  !item.key.startsWith(MARKER) &&
  given.isText(topicOf(item), MAX_TOPIC);

const isWithin = (item: Item, prefix: string): boolean => `${topicOf(item)}.`.startsWith(prefix);

// What a person does

/** How to undo what was done to notifications: the items that it took away, and the msg_ids of those
 * that it put in their place. */
export interface Undo {
  readonly items: readonly Item[];
  readonly written: readonly MsgID[];
}

/** The markers that these notifications lack. */
function lackingMarkers(live: readonly Item[]): Item[] {
  const places = new Set(live.map(placeOf));
  return live
    .filter((item) => isEntry(item) && !places.has(MARKER + placeOf(item)))
    .map((item) => ({ ...item, category: MARKERS + topicOf(item), body: null, key: MARKER + keyOf(item) }));
}

/** What comes back, given what is live under the keys of the undo now: the notifications before the
 * markers.
 *
 * What another device or the backend has put under a key since is newer, and stays. A marker goes
 * only where a notification is, or comes back. */
function comingBack({ items, written }: Undo, live: readonly Item[], now: Time): Item[] {
  const kept = new Set(live.filter(({ msg_id }) => !written.includes(msg_id)).map(placeOf));
  const missing = items.filter((item) => !kept.has(placeOf(item)) && !hasExpired(item, now));
  const there = new Set([...live, ...missing].map(placeOf));
  return missing
    .filter((item) => !isMarker(item) || there.has(placeOf(item).slice(MARKER.length)))
    .sort((a, b) => +isMarker(a) - +isMarker(b) || compareItems(a, b));
}

/** What an inbox needs of a client. */
export interface Device {
  readonly user: UID;
  state(): State;
  change<T>(operation: (replica: Replica, now: Time) => T): Promise<T>;
}

/** The items that an action finds. */
type Find = (replica: Replica, now: Time) => readonly Item[];

/** What the inbox has under the keys of notifications: these, begun or not, and then their markers.
 * It has nothing that is hidden. */
const under =
  (keys: readonly Key[]): Find =>
  (replica, now) =>
    [...new Set(given.texts("keys", [...keys, ...keys.map((key) => MARKER + key)]))]
      .flatMap((key) => replica.liveWithKey(key, now))
      .filter((item) => isEntry(item) || isMarker(item));

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
export interface Inbox {
  /** The notifications, the newest first; with `topic`, those of it and of the topics below it (of
   * `likes`, also `likes.photo7`); with `limit`, the first so many. */
  list(topic?: Topic, options?: { readonly limit?: number | undefined }): readonly InboxEntry[];
  /** How many notifications are unread; with `topic`, of it and of the topics below it. */
  unreadCount(topic?: Topic): number;
  /** How many notifications are unread, by the first segment of their topics; none is 0. */
  unreadByTopic(): ReadonlyMap<Topic, number>;

  // Each of these resolves with how to undo it, for `undo`; with undefined if there was nothing to do.

  /** Marks notifications as read, on all devices. */
  read(...keys: Key[]): Promise<Undo | undefined>;
  /** Marks all notifications that this device shows as read, on all devices; with `topic`, those of
   * it and of the topics below it. What this device has not been told of stays unread, and so does
   * what has not begun. */
  readAll(topic?: Topic): Promise<Undo | undefined>;
  /** Removes notifications, on all devices. */
  archive(...keys: Key[]): Promise<Undo | undefined>;
  /** Hides a notification until later, on all devices, also on those that are offline then. If it is
   * unread, it is unread when it comes back. A duration counts from now. Rejects unless the time lies
   * between now and the expiry of the notification. */
  snooze(key: Key, until: When): Promise<Undo | undefined>;

  // These two resolve with whether they did anything.

  /** Marks notifications as unread, on all devices. */
  unread(...keys: Key[]): Promise<boolean>;
  /** Puts again what was taken away, as new messages: what was archived comes back as the newest.
   * What another device or the backend has put under a key since then stays. Idempotent. */
  undo(undo: Undo): Promise<boolean>;
}

export function inboxOf(device: Device): Inbox {
  const { user } = device;

  function list(topic?: Topic, { limit }: { readonly limit?: number | undefined } = {}): readonly InboxEntry[] {
    const prefix = topicPrefix(topic);
    const { items } = device.state();
    const markers = new Map(items.filter(isMarker).map((item) => [placeOf(item), item]));
    return items
      .filter((item) => isEntry(item) && isWithin(item, prefix))
      .map((item) => entry(item, markers.get(MARKER + placeOf(item))))
      .reverse()
      .slice(0, limit);
  }

  /** Dismisses what is found: by these ranges, or else by its keys. */
  const dismiss = (find: Find, ranges?: readonly Range[]): Promise<Undo | undefined> =>
    device.change((replica, now) => {
      const items = find(replica, now);
      if (!items.length) return undefined;
      const dismissal = ranges ? { ranges } : { keys: [...new Set(items.map(keyOf))].map((key) => ({ key })) };
      const { device_id } = replica.device;
      replica.dismissSeen({ uid: user, msg_id: newMsgId(), device_id, dismissal }, now);
      return { items, written: [] };
    });

  /** Writes what follows from what is live under the keys. */
  const write = (
    keys: readonly Key[],
    decide: (live: readonly Item[], now: Time) => readonly Message[],
  ): Promise<Undo | undefined> =>
    device.change((replica, now) => {
      const items = under(keys)(replica, now);
      const messages = decide(items, now);
      replica.writeAll(messages, now);
      return messages[0] && { items, written: messages.map(({ msg_id }) => msg_id) };
    });

  /** Puts these items, given what is live under the keys. Resolves with whether there are any. */
  const put = async (
    keys: readonly Key[],
    items: (live: readonly Item[], now: Time) => readonly Item[],
  ): Promise<boolean> =>
    !!(await write(keys, (live, now) => items(live, now).map((item) => again(user, item, now))));

  return {
    list,
    unreadCount: (topic) => list(topic).filter(({ unread }) => unread).length,
    unreadByTopic() {
      const counts = new Map<Topic, number>();
      for (const { topic, unread } of list()) {
        const first = topic.replace(/\..*/s, "");
        if (unread) counts.set(first, (counts.get(first) ?? 0) + 1);
      }
      return counts;
    },
    read: (...keys) => dismiss((replica, now) => under(keys)(replica, now).filter(isMarker)),
    async readAll(topic) {
      const prefix = topicPrefix(topic);
      return dismiss(
        (replica, now) => replica.state(now).items.filter((item) => isMarker(item) && isWithin(item, prefix)),
        [
          ...(prefix ? [{ category: MARKERS + topic }] : []),
          { category: MARKERS + prefix, prefix: true },
        ],
      );
    },
    archive: (...keys) => dismiss(under(keys)),
    snooze: (key, until) =>
      write([key], (live, now) => live.map((item) => snoozed(user, item, given.instant("until", until), now))),
    unread: (...keys) => put(keys, lackingMarkers),
    undo: async (undo) =>
      put(
        undo.items.map((item) => keyOf(item).replace(/^unread:/, "")),
        (live, now) => comingBack(undo, live, now),
      ),
  };
}

const entry = (item: Item, marker: Item | undefined): InboxEntry => ({
  item,
  marker,
  key: keyOf(item),
  topic: topicOf(item),
  unread: !!marker,
  get fields() {
    return validFields(item.body);
  },
});
