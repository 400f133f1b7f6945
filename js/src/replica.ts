/**
 * A device's replica: the facts received from the server, and the outbox of unsent messages.
 *
 *     shown = facts + outbox applied on top          visible = shown − hidden − awaited − expired
 *
 * A replica is a set of records, which its operations change, and a journal of what they were
 * before: so a change can be saved, or rolled back if that fails, or applied to the replica of
 * another tab. An operation gets the time as an argument.
 *
 * A node tells a replica in order, and never sends a creation that is dead when it is stored. So the
 * facts are the items without a known death, and nothing else. What a replica holds is proportional
 * to what is live and what is unsent, whatever has passed.
 *
 * A written message means what it means when it is written: its offsets become instants, and what it
 * dismisses is what the person has seen. It stays in the outbox until the node acknowledges it, and
 * then, with the ctime that it was given, until the cursor reaches that ctime. Only messages received
 * from the node become facts: the node does not send the dismissal of an item that a replica at this
 * cursor cannot have, so a message that became a fact in another way might never be dismissed here.
 *
 * An erase of the user, of which `epoch` is the ctime, leaves nothing of all this. What is written on
 * a device belongs to the life of the user that the device knows of, and goes with it: so no outbox
 * can bring an erased user back. A new life begins when the application asks for it.
 *
 * An unsent message is shown as if the node stored it now: its ctime is later than all known ones,
 * and known dismissals do not apply to it. Once the node has sent the message back (it is echoed), it
 * is shown from the facts alone.
 */

import { EARLIEST_TIME, byteLength } from "./arguments.js";
import { GregorError, invalid, stop, type Problem } from "./errors.js";
import { Facts, clausesOf, comparesTime, type Clause } from "./facts.js";
import type { Result } from "./frames.js";
import { SECOND, type Time, type TimeOrOffset } from "./instant.js";
import { canonical, encode } from "./json.js";
import type { DeviceID, Item, Key, Message, MsgID, StoredMessage, UID } from "./message.js";
import { acknowledgedPart, isAcknowledged, type OutboxEntry } from "./outbox.js";
import {
  SET_ASIDE,
  isReadable,
  splitKey,
  type Changes,
  type DeviceRecord,
  type OwnerRecord,
  type RecordKey,
  type Records,
  type RejectedEntry,
} from "./records.js";
import { snoozed } from "./snooze.js";
import { State, compareItems, timeOf } from "./state.js";
import { entryHash, hashText } from "./state-hash.js";
import { hasBegun, isLive, isVisible } from "./visibility.js";
import { hasOffsetEnds, namingAlso, repeats, repeatsItem, repeatsOpen, withEnds, withInstants } from "./writing.js";

const MAX_REJECTED = 1_000;
const MAX_AWAITED = 1_000;
const MAX_MESSAGE = 512 * 1024;
/** Nodes and devices whose clocks differ by less agree on what has expired. */
const EXPIRY_GRACE = 60 * SECOND;
/** The uid in messages that are written before a node has reported the device's real uid. */
const UNKNOWN_UID = "self";

/** The records of one kind. */
interface Collection {
  get(name: string): unknown;
  set(name: string, value: never): unknown;
  delete(name: string): unknown;
  keys(): Iterable<string>;
}

export class Replica {
  /** What the server has told: complete up to the cursor. */
  readonly facts = new Facts((msgId, next) => this._beforeItem(msgId, next));
  readonly outbox = new Map<MsgID, OutboxEntry>();
  readonly hidden = new Map<MsgID, true>();
  /** Hidden ids whose items have not arrived, each with its number in the order of hiding. */
  readonly awaited = new Map<MsgID, number>();
  readonly rejected = new Map<MsgID, RejectedEntry>();
  /** The records that could not be read, by their former keys. */
  readonly setAside = new Map<RecordKey, unknown>();
  /** The facts are complete from here on: since then, no item has been forgotten. */
  knownSince: Time = 0;
  /** The ids for which something may have changed since `saved` or `rollback`. */
  readonly changed = new Set<MsgID>();

  private readonly _owner = new Map<string, OwnerRecord>();
  private readonly _device = new Map<string, DeviceRecord>();
  private readonly _kinds: Readonly<Record<string, Collection>> = {
    owner: this._owner,
    device: this._device,
    item: this.facts,
    outbox: this.outbox,
    hidden: this.hidden,
    awaited: this.awaited,
    rejected: this.rejected,
    [SET_ASIDE]: this.setAside as Map<string, unknown>,
  };
  /** What the records that have changed were before. */
  private _journal = new Map<RecordKey, unknown>();
  private _savedSince: Time = 0;
  private _lastNumber = 0;
  /** The sum of the hashes of the facts, once it has been asked for. */
  private _hashSum: bigint | undefined;

  // What follows from the rest.

  private _shown = this.facts;
  private _latestCtime: Time = 0;
  /** The items that the outbox may have changed in what is shown. */
  private _overlaid = new Set<MsgID>();

  /** A new replica, of which nothing has been saved. */
  constructor(deviceId: DeviceID) {
    this._device.set("", { ...NEW, device_id: deviceId });
    this._setDevice({});
    this.saved();
    this._missing = new Map([
      ["owner/", undefined],
      ["device/", undefined],
    ]);
  }

  // Records

  /** The replica that was saved; a new one if there are no records. Without the record of the device,
   * its cursor is 0, so the first sync is a snapshot. Records that cannot be read are set aside: they
   * are kept, under another kind. `take` has what the store lacks then. Throws `setup` if the records
   * belong to another device, or do not say to which. */
  static load(records: Records, deviceId: DeviceID): Replica {
    const replica = new Replica(deviceId);
    for (const [key, value] of records) replica._load(key, value);
    const device = readable<DeviceRecord>("device", records.get("device/"));
    const owner =
      device ??
      readable<OwnerRecord>("owner", records.get("owner/")) ??
      readable<OwnerRecord>("owner", records.get("device/")); // often only the cursor is damaged
    if (owner) {
      const { device_id, uid, epoch, erased } = owner;
      replica._setDevice({ device_id, uid, epoch, erased, ...device });
    } else if (records.has("owner/") || records.has("device/")) {
      throw stop("setup", "no record of the store says whose it is, so what is unsent in it may be another user's; nothing was changed: use a new store");
    }
    if (replica.device.device_id !== deviceId) {
      throw stop("setup", `this store belongs to the device ${replica.device.device_id}, not to ${deviceId}; use one store per device`);
    }
    replica.saved();
    replica._settle([]);
    return replica;
  }

  private _load(key: RecordKey, value: unknown): void {
    const [kind, name] = splitKey(key);
    if (value === undefined || !name) return; // the store cannot read it; or it is the device's
    if (readable(kind, value)) this._set(kind, name, value);
  }
