/**
 * Messages: in-band ones change a user's state, out-of-band ones are stored nowhere.
 *
 * The values are what frames hold, under the names of the protocol. The same value goes from the
 * socket to the store and to the app; nothing changes it. A part that is not there is undefined,
 * never null.
 */

import * as given from "./arguments.js";
import { SECOND, type Time, type TimeOrOffset, type When } from "./instant.js";
import { present } from "./json.js";
import { hex } from "./sha256.js";

export type { JSONValue } from "./json.js";

export type UID = string;
export type DeviceID = string;
export type MsgID = string;
export type Category = string;
export type Key = string;

const MAX_MSG_ID = 64;

/** Creates one item. It begins to be visible at `starts`, if given, and expires at `expires`. With
 * a `key`, it takes the place of the item of this key and scope that was created before. */
export interface Creation {
  readonly category: Category;
  readonly body: unknown;
  readonly expires?: TimeOrOffset;
  readonly starts?: TimeOrOffset;
  readonly key?: Key;
}

/** All items of a category (with `prefix`: of all categories that begin with it) whose *time*, the
 * later of ctime and start, is up to `end_time` inclusive, except those in `skip_msg_ids`.
 * `end_time` defaults to the ctime of the message, and counts as that if it is later. With
 * `scheduled`, the ctime alone is compared, so items that have not begun are included. */
export interface Range {
  readonly category: Category;
  readonly end_time?: TimeOrOffset;
  readonly skip_msg_ids?: readonly MsgID[];
  readonly prefix?: boolean;
  readonly scheduled?: boolean;
}

/** All items with a key that were created up to `end_time` inclusive, begun or not. `end_time` is
 * as in a Range. */
export interface KeyDismissal {
  readonly key: Key;
  readonly end_time?: TimeOrOffset;
}

/** Dismisses items: by msg_id, all in the ranges, and all with the keys. */
export interface Dismissal {
  readonly msg_ids?: readonly MsgID[];
  readonly ranges?: readonly Range[];
  readonly keys?: readonly KeyDismissal[];
}

/** An in-band message: a creation, a dismissal, or both (an update).
 *
 * `ctime` and `prev` are the store's; a device writes neither. `device_id` scopes the creation to
 * that device. The dismissal applies on every device; but with a `device_id`, its ranges and keys
 * reach only items that this device sees. They never reach the item that the message creates. */
export interface Message {
  readonly uid: UID;
  readonly msg_id: MsgID;
  readonly ctime?: Time;
  readonly prev?: Time;
  readonly device_id?: DeviceID;
  readonly creation?: Creation;
  readonly dismissal?: Dismissal;
}

/** A message that a store has accepted, as nodes send it. */
export interface StoredMessage extends Message {
  readonly ctime: Time;
}

/** A message to the devices that are connected now: delivered at most once, stored nowhere. */
export interface OutOfBandMessage {
  readonly uid: UID;
  readonly system: string;
  readonly body: unknown;
}

/** What a creation created: a user sees it from its start until it is dismissed or expires. */
export interface Item<Body = unknown> {
  readonly msg_id: MsgID;
  readonly ctime: Time;
  readonly category: Category;
  readonly body: Body;
  readonly device_id?: DeviceID;
  readonly expires_at?: Time;
  readonly starts_at?: Time;
  readonly key?: Key;
}

/** Where an app's message belongs, and the id under which it is known forever: a random one, unless
 * the app gives one. */
export interface MessageOptions {
  readonly deviceId?: DeviceID | undefined;
  readonly msgId?: MsgID | undefined;
}

export interface CreateOptions extends MessageOptions {
  readonly starts?: When | undefined;
  readonly expires?: When | undefined;
}

export interface PutOptions extends CreateOptions {
  /** The category, unless given. */
  readonly key?: Key | undefined;
}

export interface DismissKeyOptions extends MessageOptions {
  readonly endTime?: When | undefined;
}

export interface DismissCategoryOptions extends DismissKeyOptions {
  readonly prefix?: boolean | undefined;
  readonly scheduled?: boolean | undefined;
  readonly skipMsgIds?: readonly MsgID[] | undefined;
}

/** A message that creates one item. */
export const create = (
  uid: UID,
  category: Category,
  body?: unknown,
  options: CreateOptions = {},
): Message => message(uid, options, { creation: creation(category, body, options) });

/** A message that creates one item in place of the one with its key, which is the category by
 * default: the last write wins. */
export const put = (
  uid: UID,
  category: Category,
  body?: unknown,
  options: PutOptions = {},
): Message => {
  const key = given.text("key", options.key ?? category);
  return message(uid, options, { creation: { ...creation(category, body, options), key } });
};

/** A message that dismisses items by their ids. */
export const dismiss = (
  uid: UID,
  msgIds: readonly MsgID[],
  options: MessageOptions = {},
): Message =>
  message(uid, options, { dismissal: { msg_ids: given.texts("msgIds", msgIds, MAX_MSG_ID, 1) } });

/** A message that dismisses all items of a category up to `endTime` inclusive; with `scheduled`,
 * also those that have not begun. With a device, only what that device sees. */
export const dismissCategory = (
  uid: UID,
  category: Category,
  options: DismissCategoryOptions = {},
): Message => {
  const range = present({
    category: given.text("category", category),
    end_time: optional(options, "endTime", given.instant),
    skip_msg_ids: optional(options, "skipMsgIds", given.texts, MAX_MSG_ID),
    prefix: options.prefix,
    scheduled: options.scheduled,
  });
  return message(uid, options, { dismissal: { ranges: [range] } });
};

/** A message that dismisses the items with these keys that were created up to `endTime` inclusive,
 * begun or not. With a device, only what that device sees. */
export const dismissKey = (
  uid: UID,
  keys: readonly Key[],
  options: DismissKeyOptions = {},
): Message => {
  const end_time = optional(options, "endTime", given.instant);
  const named = given.texts("keys", keys, 255, 1).map((key) => present({ key, end_time }));
  return message(uid, options, { dismissal: { keys: named } });
};

/** An out-of-band message. */
export const outOfBand = (uid: UID, system: string, body: unknown = null): OutOfBandMessage => ({
  uid,
  system: given.text("system", system),
  body: given.body("body", body),
});

const message = (
  uid: UID,
  options: MessageOptions,
  parts: Pick<Message, "creation" | "dismissal">,
): Message =>
  present({
    uid,
    msg_id: optional(options, "msgId", given.identifier, MAX_MSG_ID) ?? newMsgId(),
    device_id: optional(options, "deviceId", given.identifier),
    ...parts,
  });

const creation = (category: Category, body: unknown = null, options: CreateOptions): Creation => ({
  body: given.body("body", body),
  ...present({
    category: given.text("category", category),
    expires: optional(options, "expires", given.instant, SECOND),
    starts: optional(options, "starts", given.instant, 0),
  }),
});

/** The option, if it is given, as it is checked up to a limit. */
const optional = <Name extends string, T>(
  options: { readonly [name in Name]?: unknown },
  name: Name,
  check: (field: string, value: unknown, limit?: number) => T,
  limit?: number,
): T | undefined => (options[name] == null ? undefined : check(name, options[name], limit));

/** The default msg_id: 32 random hex digits. */
export const newMsgId = (): MsgID => hex(crypto.getRandomValues(new Uint32Array(4)));

/** Negative if `a` comes before `b` in the order of their UTF-8, in which Gregor orders ids. That
 * of JavaScript is another: it has characters beyond U+FFFF before U+E000. */
export function byteCompare(a: string, b: string): number {
  let place = 0;
  while (place < a.length && a[place] === b[place]) place++;
  return (a.codePointAt(place) ?? -1) - (b.codePointAt(place) ?? -1);
}
