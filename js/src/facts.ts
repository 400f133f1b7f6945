/**
 * The items of one user, and the rules by which messages create and dismiss them.
 *
 * A creation makes an item, and takes the place of the one with its key and scope. A dismissal
 * reaches the items that it names by id; that one of its ranges or keys covers; and no item that is
 * stored after it, but for those that it names by id. `spec/semantics.md`, section 4, has the rules.
 *
 * A node tells a device in order, so messages are replayed in the order of their ctimes. Then no
 * range, key or death has to be kept for messages that are still to come.
 */

import { after, type Time } from "./instant.js";
import { present, type Item, type Key, type KeyDismissal, type Message, type MsgID, type Range, type StoredMessage } from "./message.js";
import { State, timeOf } from "./state.js";
import { hasExpired, isVisible, seenOn } from "./visibility.js";

/** A part of a dismissal that has an end. */
export type Clause = Range | KeyDismissal;

export const clausesOf = ({ dismissal }: Message): readonly Clause[] => [
  ...(dismissal?.ranges ?? []),
  ...(dismissal?.keys ?? []),
];

/** Whether the clause leaves what has not begun; otherwise it compares the ctime alone. */
export const comparesTime = (clause: Clause): boolean => !("key" in clause || clause.scheduled);

/** An end is never later than its message: a dismissal says nothing about what comes after it. */
const endOf = ({ end_time }: Clause, ctime: Time): Time =>
  end_time ? Math.min(after(end_time, ctime), ctime) : ctime;

/** Whether a clause of the message covers the item, whatever its time. */
const matches = (clause: Clause, { msg_id, device_id }: Message, item: Item): boolean =>
  item.msg_id !== msg_id &&
  seenOn(item.device_id, device_id) &&
  ("key" in clause
    ? item.key === clause.key
    : (clause.prefix
        ? item.category.startsWith(clause.category)
        : item.category === clause.category) && !clause.skip_msg_ids?.includes(item.msg_id));

/** Whether a clause of the message covers the item, if it ends at this time. */
export const covers = (clause: Clause, message: Message, item: Item, end: Time): boolean =>
  (comparesTime(clause) ? timeOf(item) : item.ctime) <= end && matches(clause, message, item);

/** The item that a message creates. */
function itemOf({ msg_id, ctime, device_id, creation }: StoredMessage): Item | undefined {
  if (!creation) return undefined;
  const { category, body, expires, starts, key } = creation;
  return present({
    msg_id,
    ctime,
    category,
    body,
    device_id,
    expires_at: expires && after(expires, ctime),
    starts_at: starts && after(starts, ctime),
    key,
  }) as Item;
}

export class Facts {
  private readonly _dead = new Map<MsgID, readonly [Item, Time]>();
  /** The ids that were dismissed, each since when. */
  private readonly _tombstones = new Map<MsgID, Time>();
  /** No item expires before this instant. */
  private _firstExpiry: Time = -Infinity;
  /** No item begins or expires between these two instants. */
  private _quietFrom: Time = Infinity;
  private _quietUntil: Time = Infinity;

  /** `items` are those without a death; `onChange` is called before each change of one of them. */
  constructor(
    private readonly _onChange: (msgId: MsgID, next: Item | undefined) => void = () => {},
    readonly items = new Map<MsgID, Item>(),
    private readonly _byKey = new Map<Key, readonly Item[]>(),
  ) {}

  /** The same items, which change apart from these. */
  copy(): Facts {
    return new Facts(undefined, new Map(this.items), new Map(this._byKey));
  }

  // A map of items

  get(msgId: MsgID): Item | undefined {
    return this.items.get(msgId);
  }

  keys(): Iterable<MsgID> {
    return this.items.keys();
  }

  set(msgId: MsgID, item: Item): void {
    this._onChange(msgId, item);
    this._unindex(msgId);
    this.items.set(msgId, item);
    if (item.key) {
      const others = this.withKey(item.key);
      this._byKey.set(item.key, item.device_id ? [...others, item] : [item, ...others]);
    }
    this._firstExpiry = Math.min(this._firstExpiry, item.expires_at ?? Infinity);
    this._expect(item);
  }

  delete(msgId: MsgID): void {
    if (!this.items.has(msgId)) return;
    this._onChange(msgId, undefined);
    this._unindex(msgId);
    this.items.delete(msgId);
  }

  private _unindex(msgId: MsgID): void {
    const key = this.items.get(msgId)?.key;
    if (!key) return;
    const others = this.withKey(key).filter((item) => item.msg_id !== msgId);
    if (others.length) this._byKey.set(key, others);
    else this._byKey.delete(key);
  }

  // Adding facts

  /** Adds what a message says, which is not earlier than those before it. Idempotent. Returns the
   * ids of the items that it may have created or dismissed. */
  replay(message: StoredMessage): Set<MsgID> {
    const { msg_id, ctime, device_id, creation, dismissal } = message;
    const reached = new Set(dismissal?.msg_ids);
    for (const id of reached) if (!this._tombstones.has(id)) this._tombstones.set(id, ctime);
    for (const clause of clausesOf(message)) {
      for (const item of this.covered(clause, message, endOf(clause, ctime))) reached.add(item.msg_id);
    }
    for (const item of this.withKey(creation?.key)) {
      if (item.device_id === device_id && item.ctime < ctime) reached.add(item.msg_id);
    }
    for (const id of reached) this._dismiss(id, ctime);
    this._add(itemOf(message));
    return reached.add(msg_id);
  }

  private _dismiss(msgId: MsgID, at: Time): void {
    const item = this.items.get(msgId);
    if (!item) return;
    this.delete(msgId);
    this._dead.set(msgId, [item, at]);
  }

  private _add(item: Item | undefined): void {
    if (!item || this.items.has(item.msg_id) || this._dead.has(item.msg_id)) return;
    const at = this._tombstones.get(item.msg_id);
    if (at === undefined) this.set(item.msg_id, item);
    else this._dead.set(item.msg_id, [item, at]);
  }

  /** From here on, no death that is known applies to what is added. */
  forgetTombstones(): void {
    this._tombstones.clear();
  }

  /** Forgets what is dead, and what expired at this instant or before. Returns whether anything was
   * dead, and the items that had expired. */
  forget(until: Time): readonly [hasDied: boolean, expired: readonly Item[]] {
    const hasDied = this._dead.size > 0;
    this._dead.clear();
    this._tombstones.clear();
    const expired = this.expired(until);
    for (const item of expired) this.delete(item.msg_id);
    if (until >= this._firstExpiry) {
      this._firstExpiry = Infinity;
      for (const { expires_at = Infinity } of this.items.values()) {
        this._firstExpiry = Math.min(this._firstExpiry, expires_at);
      }
    }
    return [hasDied, expired];
  }

  // Queries

  /** The items with this key, the unscoped one first. */
  withKey(key: Key | undefined): readonly Item[] {
    return this._byKey.get(key as Key) ?? [];
  }

  /** The items that a clause of the message covers, if it ends at this time. */
  covered(clause: Clause, message: Message, end: Time): readonly Item[] {
    const candidates = "key" in clause ? this.withKey(clause.key) : [...this.items.values()];
    return candidates.filter((item) => covers(clause, message, item, end));
  }

  /** What was, or will be, visible on the device at a stated time; with `known`, of the messages up
   * to this ctime. */
  stateAt(deviceId: string | undefined, at: Time, known = at): State {
    const dead = [...this._dead.values()].filter(([, diedAt]) => diedAt > known);
    const items = [...this.items.values(), ...dead.map(([item]) => item)];
    return new State(items.filter((item) => item.ctime <= known && isVisible(item, deviceId, at)), at);
  }

  /** The items that expired at this instant or before. */
  expired(until: Time): readonly Item[] {
    return until < this._firstExpiry ? [] : [...this.items.values()].filter((item) => hasExpired(item, until));
  }

  /** A time that is later than this one, and not later than when the next item begins or expires;
   * Infinity if none does. */
  nextChange(after: Time): Time {
    if (after < this._quietFrom || after >= this._quietUntil) {
      this._quietFrom = after;
      this._quietUntil = Infinity;
      for (const item of this.items.values()) this._expect(item);
    }
    return this._quietUntil;
  }

  private _expect({ starts_at = 0, expires_at = 0 }: Item): void {
    for (const time of [starts_at, expires_at]) {
      if (time > this._quietFrom && time < this._quietUntil) this._quietUntil = time;
    }
  }
}
