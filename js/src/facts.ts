/**
 * The items of one user, and the rules by which messages create and dismiss them.
 *
 * A creation makes an item, and takes the place of the one with its key and scope. A dismissal
 * reaches the items that it names by id, and those that its ranges and keys cover; and nothing that
 * is stored after it, but for what it names by id. Section 4 of `spec/semantics.md` has the rules.
 *
 * A node tells a device in order, so messages are replayed in the order of their ctimes. Then
 * nothing has to be kept for messages that are still to come, but the ids that were dismissed.
 */

import { after, type Time } from "./instant.js";
import { present } from "./json.js";
import type { Item, Key, KeyDismissal, Message, MsgID, Range, StoredMessage } from "./message.js";
import { timeOf } from "./state.js";
import { hasExpired, seenOn } from "./visibility.js";

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

/** Whether a clause of the message covers the item, if it ends at this time. */
export const covers = (clause: Clause, { msg_id, device_id }: Message, item: Item, end: Time): boolean =>
  item.msg_id !== msg_id &&
  seenOn(item.device_id, device_id) &&
  (comparesTime(clause) ? timeOf(item) : item.ctime) <= end &&
  ("key" in clause
    ? item.key === clause.key
    : (clause.prefix ? item.category.startsWith(clause.category) : item.category === clause.category) &&
      !clause.skip_msg_ids?.includes(item.msg_id));

/** The item that a message creates. */
const itemOf = (
  { msg_id, ctime, device_id }: StoredMessage,
  { category, body, expires, starts, key }: NonNullable<Message["creation"]>,
): Item =>
  present({
    msg_id,
    ctime,
    category,
    body,
    device_id,
    expires_at: expires && after(expires, ctime),
    starts_at: starts && after(starts, ctime),
    key,
  }) as Item;

export class Facts {
  /** Dead items, each with its death. */
  private readonly _dead = new Map<MsgID, readonly [Item, Time]>();
  /** The ids that were dismissed, each with when. */
  private readonly _tombstones = new Map<MsgID, Time>();
  /** No item expires before this instant. */
  private _firstExpiry: Time = 0;
  /** No item begins or expires between these instants. */
  private _quietFrom: Time = Infinity;
  private _quietUntil: Time = Infinity;

  /** `items` have no known death; `onChange` is called before each change of one of them. */
  constructor(
    private readonly _onChange?: (msgId: MsgID, next?: Item) => void,
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

  has(msgId: MsgID): boolean {
    return this.items.has(msgId);
  }

  keys(): Iterable<MsgID> {
    return this.items.keys();
  }

  set(msgId: MsgID, item: Item): void {
    this._onChange?.(msgId, item);
    this._index(msgId, item);
    this.items.set(msgId, item);
    this._expect([item]);
  }

  delete(msgId: MsgID): void {
    this._onChange?.(msgId);
    this._index(msgId);
    this.items.delete(msgId);
  }

  /** Makes the item the one with this id that is found by its key. */
  private _index(msgId: MsgID, item?: Item): void {
    const known = this.items.get(msgId)?.key;
    if (known) {
      const others = this.withKey(known).filter(({ msg_id }) => msg_id !== msgId);
      if (others.length) this._byKey.set(known, others);
      else this._byKey.delete(known);
    }
    if (item?.key) {
      const others = this.withKey(item.key);
      this._byKey.set(item.key, item.device_id ? [...others, item] : [item, ...others]);
    }
  }

  // Adding facts

  /** Adds what a message says, which is not earlier than those before it. Idempotent. Returns the
   * ids of the items that it may have created or dismissed. */
  replay(message: StoredMessage): ReadonlySet<MsgID> {
    const { msg_id, ctime, device_id, creation, dismissal } = message;
    const reached = new Set(dismissal?.msg_ids);
    for (const id of reached) if (!this._tombstones.has(id)) this._tombstones.set(id, ctime);
    for (const clause of clausesOf(message)) {
      for (const item of this.covered(clause, message, endOf(clause, ctime))) reached.add(item.msg_id);
    }
    for (const item of this.withKey(creation?.key)) {
      if (item.device_id === device_id && item.ctime < ctime) reached.add(item.msg_id);
    }
    for (const id of reached) {
      const item = this.items.get(id);
      if (item) this._dead.set(id, [item, ctime]);
      this.delete(id);
    }
    if (creation && !this.items.has(msg_id) && !this._dead.has(msg_id)) {
      const item = itemOf(message, creation);
      const diedAt = this._tombstones.get(msg_id);
      if (diedAt) this._dead.set(msg_id, [item, diedAt]);
      else this.set(msg_id, item);
    }
    return reached.add(msg_id);
  }

  /** From here on, no death that is known applies to what is added. */
  forgetTombstones(): void {
    this._tombstones.clear();
  }

  /** Forgets what is dead, and what expired at this instant or before. Returns whether anything was
   * dead, and what had expired. */
  forget(until: Time): readonly [hasDied: boolean, expired: readonly Item[]] {
    const hasDied = this._dead.size > 0;
    this._dead.clear();
    this._tombstones.clear();
    const expired = this.expired(until);
    for (const { msg_id } of expired) this.delete(msg_id);
    if (until >= this._firstExpiry) {
      this._firstExpiry = Infinity;
      this._expect(this.items.values());
    }
    return [hasDied, expired];
  }

  // Queries

  /** The items with this key, the unscoped one first. */
  withKey(key: Key = ""): readonly Item[] {
    return this._byKey.get(key) ?? [];
  }

  /** The items that a clause of the message covers, if it ends at this time. */
  covered(clause: Clause, message: Message, end: Time): readonly Item[] {
    const candidates = "key" in clause ? this.withKey(clause.key) : [...this.items.values()];
    return candidates.filter((item) => covers(clause, message, item, end));
  }

  /** The items that existed at a stated time, and were not dead. */
  at(time: Time): readonly Item[] {
    const dead = [...this._dead.values()].filter(([, diedAt]) => diedAt > time);
    return [...this.items.values(), ...dead.map(([item]) => item)].filter(({ ctime }) => ctime <= time);
  }

  /** The items that expired at this instant or before. */
  expired(until: Time): readonly Item[] {
    return until < this._firstExpiry
      ? []
      : [...this.items.values()].filter((item) => hasExpired(item, until));
  }

  /** A time later than this one, and not later than when the next item begins or expires; Infinity if
   * none does. */
  nextChange(after: Time): Time {
    if (after < this._quietFrom || after >= this._quietUntil) {
      this._quietFrom = after;
      this._quietUntil = Infinity;
      this._expect(this.items.values());
    }
    return this._quietUntil;
  }

  private _expect(items: Iterable<Item>): void {
    for (const { starts_at = 0, expires_at = Infinity } of items) {
      this._firstExpiry = Math.min(this._firstExpiry, expires_at);
      for (const time of [starts_at, expires_at]) {
        if (time > this._quietFrom) this._quietUntil = Math.min(this._quietUntil, time);
      }
    }
  }
}
