/** What a store keeps of a replica: records of the same kinds and shapes as in Python. */

import { stop, type Problem } from "./errors.js";
import { integer, item, message, object, optional, problem, text, time, type Reader } from "./frames.js";
import type { Time } from "./instant.js";
import type { DeviceID, Message, UID } from "./message.js";
import type { Changes, RecordKey } from "./stores/store.js";

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

/** The kind of a record, and its name among the records of that kind. A name may be any text. */
export function splitKey(key: RecordKey): [kind: string, name: string] {
  const slash = key.indexOf("/");
  return [key.slice(0, slash), key.slice(slash + 1)];
}

const owner = { device_id: text, uid: optional(text), epoch: optional(time) };

/** A message with or without a ctime. */
const written: Reader<Message> = (value, path) => message({ ctime: 0, ...Object(value) }, path);

/** How each kind of record is read. */
const READERS: Readonly<Record<string, Reader<unknown>>> = {
  owner: object<object>(owner),
  device: object<object>({ ...owner, cursor: time, clock_offset: integer }),
  item,
  outbox: object<object>({ number: integer, written: time, message: written }),
  awaited: integer,
  rejected: object<object>({ number: integer, message: written, error: problem }),
};

/** Whether this version can read the record. What is of no kind that it knows, it need not read. */
export function isReadable(kind: string, record: unknown): boolean {
  try {
    READERS[kind]?.(record, "");
    return true;
  } catch {
    return false;
  }
}

/** The device that the records belong to; a new one if there are none. If its own record is damaged,
 * the owner says so, and the cursor is 0: the first sync is a snapshot. Throws `setup` if the records
 * belong to another device, or do not say to which. */
export function deviceIn(records: Changes, device_id: DeviceID): DeviceRecord {
  const known = ["owner", "device"].flatMap((kind) => {
    const record = records.get(`${kind}/`);
    return isReadable(kind, record) ? [record] : [];
  });
  const fresh = { device_id, uid: null, epoch: null, erased: false, cursor: 0, clock_offset: 0 };
  const device: DeviceRecord = Object.assign(fresh, ...known);
  if (device.device_id === device_id && (known[0] || !records.size)) return device;
  throw stop("setup", `this store is not of the device ${device_id}; use another store`);
}
