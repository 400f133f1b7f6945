/**
 * What a store keeps of a replica: records by key, of the same shapes as in Python.
 *
 * The values are JSON. A change is the records that differ, so that the size of a write does not
 * grow with the state.
 */

import type { Time } from "./instant.js";
import type { Message, DeviceID, UID } from "./message.js";
import type { Problem } from "./errors.js";

/** The kind of a record, and its name among the records of that kind, such as `item/m1`. */
export type RecordKey = `${string}/${string}`;

export type Records = ReadonlyMap<RecordKey, unknown>;

/** Records to put; one that is null is removed. */
export type Changes = Records;

/** The single record of the kind `owner`. It repeats what the one of the kind `device` says, so that
 * no unreadable record lets another user have what this one wrote, or takes what was written before
 * an erase for what was written after it. */
export interface OwnerRecord {
  readonly device_id: DeviceID;
  /** null until a node has reported it. */
  readonly uid: UID | null;
  /** The ctime of the user's last erase, 0 if there was none; null until a node has reported it. */
  readonly epoch: Time | null;
  /** The device was wiped for an erase, and takes no writes until a new life begins. */
  readonly erased: boolean;
}

/** The single record of the kind `device`. */
export interface DeviceRecord extends OwnerRecord {
  readonly cursor: Time;
  /** By how much the node's clock is ahead of this device's, in microseconds, to about a second. */
  readonly clock_offset: number;
}

/** A message that the node rejected, its position among the rejected ones, and the error. */
export interface RejectedEntry {
  readonly number: number;
  readonly message: Message;
  readonly error: Problem;
}

/** The kind of a record, and its name. A name may hold any text. */
export function splitKey(key: RecordKey): [kind: string, name: string] {
  const slash = key.indexOf("/");
  return [key.slice(0, slash), key.slice(slash + 1)];
}

/** Where a record that cannot be read is kept, under its former key. */
export const SET_ASIDE = "set_aside";

type Shape = string | { readonly [field: string]: Shape };

const MESSAGE: Shape = { uid: "string", msg_id: "string" };
const SHAPES: { readonly [kind: string]: Shape } = {
  owner: { device_id: "string" },
  device: { device_id: "string", cursor: "number", clock_offset: "number" },
  item: { msg_id: "string", ctime: "number", category: "string" },
  outbox: { number: "number", written: "number", message: MESSAGE },
  hidden: "boolean",
  awaited: "number",
  rejected: { number: "number", message: MESSAGE, error: { code: "string" } },
};

const hasShape = (value: unknown, shape: Shape): boolean =>
  typeof shape === "string"
    ? typeof value === shape
    : Object.entries(shape).every(([field, part]) => hasShape((value as any)?.[field], part));

/** Whether the record is one that this version can read. Of other kinds, none is. */
export const isReadable = (kind: string, value: unknown): boolean =>
  !(kind in SHAPES) || hasShape(value, SHAPES[kind]!);
