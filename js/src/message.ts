/**
 * Messages: in-band ones change a user's state, out-of-band ones are stored nowhere.
 *
 * The values are what frames hold, under the names of the protocol. The same value goes from the
 * socket to the store and to the app; nothing changes it.
 */

import type { Time, TimeOrOffset } from "./instant.js";

export type UID = string;
export type DeviceID = string;
export type MsgID = string;
export type Category = string;
export type Key = string;

/** What a body may be. */
export type JSONValue =
  | null
  | boolean
  | number
  | bigint
  | string
  | readonly JSONValue[]
  | { readonly [name: string]: JSONValue };

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
