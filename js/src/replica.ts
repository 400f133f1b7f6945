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
import { GregorError, invalid, stop } from "./errors.js";
import { Facts, clausesOf, comparesTime, type Clause } from "./facts.js";
import type { Result } from "./frames.js";
import { SECOND, type Time, type TimeOrOffset } from "./instant.js";
import { canonical, encode } from "./json.js";
import type { DeviceID, Item, Key, Message, MsgID, StoredMessage, UID } from "./message.js";
import { acknowledgedPart, isAcknowledged, type OutboxEntry } from "./outbox.js";
import { deviceIn, isReadable, splitKey, type DeviceRecord, type RejectedEntry } from "./records.js";
import { snoozed } from "./snooze.js";
import { State, compareItems, timeOf } from "./state.js";
import { entryHash, hashText } from "./state-hash.js";
import type { Changes, RecordKey } from "./stores/store.js";
import { hasBegun, isLive } from "./visibility.js";
import {
  hasOffsetEnds,
  namingAlso,
  repeats,
  repeatsItem,
  repeatsOpen,
  withEnds,
  withInstants,
} from "./writing.js";

/** Of awaited ids, and of rejected messages. */
const MAX_KEPT = 1_000;
const MAX_MESSAGE = 512 * 1024;
/** Nodes and devices whose clocks differ by less agree on what has expired. */
const EXPIRY_GRACE = 60 * SECOND;
/** The uid in messages that are written before a node has reported the device's real uid. */
const UNKNOWN_UID = "self";

/** The records of one kind, by their names. */
interface Collection {
  get(name: string): unknown;
  set(name: string, record: unknown): unknown;
  delete(name: string): unknown;
  keys(): Iterable<string>;
}

export class Replica {
  /** What the server has told, complete up to the cursor. */
  readonly facts = new Facts((msgId, next) => this._beforeFact(msgId, next));
  readonly outbox = new Map<MsgID, OutboxEntry>();
  readonly hidden = new Map<MsgID, true>();
  /** Hidden ids whose items have not arrived, each with its number in the order of hiding. */
  readonly awaited = new Map<MsgID, number>();
  readonly rejected = new Map<MsgID, RejectedEntry>();
  /** Records that cannot be read, by their former keys. */
  readonly setAside = new Map<string, unknown>();
  /** The facts are complete from here on: since then, no item has been forgotten. */
  knownSince: Time;

  private readonly _device = new Map<string, DeviceRecord>();
  private readonly _kinds = {
    owner: new Map(),
    device: this._device,
    item: this.facts,
    outbox: this.outbox,
    hidden: this.hidden,
    awaited: this.awaited,
    rejected: this.rejected,
    set_aside: this.setAside,
  } as unknown as Readonly<Record<string, Collection>>;
  /** The records that have changed, as they were. */
  private _journal = new Map<RecordKey, unknown>();
  /** The records that were not loaded as they are, as the store has them. */
  private readonly _repaired = new Map<RecordKey, unknown>();
  private _savedKnownSince: Time;
  private _changed = new Set<MsgID>();
  private _causes: Message[] = [];
  /** The sum of the hashes of the facts, once it has been asked for. */
  private _hashSum: bigint | undefined;

  // What follows from the facts, the cursor and the outbox

  private _shown = this.facts;
  private _latestCtime: Time = 0;
  /** The items that the outbox may have changed in what is shown. */
  private _overlaid = new Set<MsgID>();

  // Records

  /** The replica that was saved in these records; without any, a new one. A record that cannot be
   * read is set aside: it is kept, under another kind. Throws `setup` if the records belong to another
   * device, or do not say to which. */
  static load(records: Changes, deviceId: DeviceID): Replica {
    return new Replica(records, deviceId);
  }

  private constructor(records: Changes, deviceId: DeviceID) {
    const device = deviceIn(records, deviceId);
    for (const [key, record] of records) this._load(key, record);
    this._setDevice(device);
    this._journal.clear();
    for (const key of ["owner/", "device/"] as const) this._repaired.set(key, records.get(key));
    this.knownSince = this._savedKnownSince = device.cursor;
    this._settle();
  }

  private _load(key: RecordKey, record: unknown): void {
    const [kind, name] = splitKey(key);
    if (record == null) return; // the store cannot read it, and has it still
    this._changed.add(name); // what follows from it may not have been saved
    if (isReadable(kind, record)) this._kinds[kind]?.set(name, record);
    else {
      this.setAside.set(key, record);
      this._repaired.set(key, record).set(`set_aside/${key}`, undefined);
    }
  }

  /** The records that have changed since they were saved: to save them. One that is null is gone. */
  take(): Changes {
    return new Map(
      [...this._repaired, ...this._journal]
        .filter(([key, before]) => !isSame(this._record(key), before))
        .map(([key]) => [key, this._record(key) ?? null]),
    );
  }

  /** The changes are saved, as the store says: it may have numbered them. */
  saved(changes: Changes): void {
    this._journal.clear();
    this._repaired.clear();
    this._savedKnownSince = this.knownSince;
    this._replaceAll(changes);
  }

  /** Undoes what has changed since it was saved. */
  rollback(): void {
    const journal = this._journal;
    this._journal = new Map();
    this._replaceAll(journal);
    this.knownSince = this._savedKnownSince;
    this._causes = [];
  }

  /** Takes over what another tab has saved. What follows from it, and from what this tab has not
   * saved yet, is a change of this replica: `take` has it. */
  applyRecords(changes: Changes): void {
    this._replaceAll(changes);
    for (const [key, record] of changes) {
      const [kind] = splitKey(key);
      if (record && kind === "outbox") this._causes.push((record as OutboxEntry).message);
      if (record && kind === "item") this._causes.push({ ...(record as Item), uid: "", creation: record as Item });
    }
  }

  private _replaceAll(changes: Changes): void {
    const { cursor } = this.device;
    const journal = this._journal;
    this._journal = new Map();
    for (const [key, record] of changes) this._replace(key, record);
    const changed = this._journal;
    this._journal = journal;
    if (this.device.cursor !== cursor) this.knownSince = this.device.cursor;
    if (changed.size) this._settle();
  }

  private _replace(key: RecordKey, record: unknown): void {
    const before = this._record(key) as Partial<Item> | undefined;
    if (isSame(before, record)) return;
    this._put(...splitKey(key), record ?? undefined);
    // An item that is gone, though the cursor has not moved, had expired.
    if (!record) this.knownSince = Math.max(this.knownSince, before?.expires_at ?? 0);
  }

  /** The names of the records for which anything may have changed since the last call. */
  takeChanged(): ReadonlySet<MsgID> {
    const changed = this._changed;
    this._changed = new Set();
    return changed;
  }

  /** The messages that may have caused what has changed since the last call, as far as they are known. */
  takeCauses(): readonly Message[] {
    return this._causes.splice(0);
  }

  private _record(key: RecordKey): unknown {
    const [kind, name] = splitKey(key);
    return this._kinds[kind]?.get(name);
  }

  private _put(kind: string, name: string, record?: unknown): void {
    this._note(`${kind}/${name}`);
    if (record === undefined) this._kinds[kind]?.delete(name);
    else this._kinds[kind]?.set(name, record);
  }

  private _note(key: RecordKey): void {
    if (!this._journal.has(key)) this._journal.set(key, this._record(key));
    this._changed.add(splitKey(key)[1]);
  }

  private _beforeFact(msgId: MsgID, next: Item | undefined): void {
    this._note(`item/${msgId}`);
    if (this._hashSum !== undefined) this._hashSum += sumOf([next]) - sumOf([this.facts.get(msgId)]);
  }

  /** The number of what comes last in the order of writing. */
  private _nextNumber(): number {
    const numbered = [this.outbox, this.rejected, this.awaited].flatMap((records) => [...records.values()]);
    return 1 + maxOf(numbered.map(numberOf));
  }

  get device(): DeviceRecord {
    return this._device.get("") as DeviceRecord;
  }

  private _setDevice(changes: Partial<DeviceRecord>): void {
    const device = { ...this.device, ...changes };
    const { device_id, uid, epoch, erased } = device;
    this._put("device", "", device);
    this._put("owner", "", { device_id, uid, epoch, erased });
  }

  // Changes made on this device

  /** Puts a message into the outbox. Its offsets become instants, and where a range or key ends at
   * one of these, it takes this device's own items up to then by id. Idempotent: as long as the
   * outbox has the message, or the device its item. Throws `conflict` if the outbox has this msg_id
   * with other contents, `invalid` if its item would not begin before it expires, and `erased` if the
   * user was erased. */
  write(message: Message, now: Time): void {
    this._requireLife();
    const known = this.outbox.get(message.msg_id);
    const item = this._shown.get(message.msg_id);
    if (known) {
      if (!repeats(known.message, known.written, message)) {
        throw stop("conflict", "`msg_id` is in the outbox with other contents", "msg_id");
      }
    } else if (!item || !repeatsItem(item, message)) {
      this._write(this._asMeant(message, now), now);
    }
  }

  /** Puts several messages into the outbox, in order, as `write` does. */
  writeAll(messages: Iterable<Message>, now: Time): void {
    for (const message of messages) this.write(message, now);
  }

  private _asMeant(message: Message, now: Time): Message {
    const meant = withInstants(message, now);
    if (!hasOffsetEnds(message)) return meant;
    const given = clausesOf(message);
    return namingAlso(
      meant,
      clausesOf(meant).flatMap((clause, place) => {
        const end = clause.end_time?.time;
        if (end === undefined || end === given[place]?.end_time?.time) return [];
        return this._matched(meant, clause).filter((item) => this._wasHere(clause, end, now, item));
      }),
    );
  }

  /** Whether an item beyond the end was here at that time: it was written here, and the node stores
   * it later; or it is here now, told by a node whose clock is ahead. */
  private _wasHere(clause: Clause, end: Time, now: Time, item: Item): boolean {
    const { written = Infinity } = this.outbox.get(item.msg_id) ?? {};
    const isAhead = this.facts.has(item.msg_id) && item.ctime > end && end >= now;
    return (written <= end || isAhead) && hasBegunFor(clause, item, end);
  }

  /** The items that a clause of the message would reach if it had no end, in order. */
  private _matched(message: Message, clause: Clause): readonly Item[] {
    return [...this._shown.covered(clause, message, Infinity)].sort(compareItems);
  }

  private _write(message: Message, now: Time): void {
    if (message.ctime) throw invalid("ctime", "is set by the server");
    // A node closes the connection on a frame that is too large, each time it is sent.
    if (sizeOf(message) > MAX_MESSAGE) {
      throw stop("too-large", `the message has more than ${MAX_MESSAGE} bytes; split it`);
    }
    const { msg_id } = message;
    // The node has stored this message, or another with this id: the facts decide.
    const echoed = this.facts.has(msg_id);
    const { epoch } = this.device;
    const entry = { number: this._nextNumber(), written: now, message, epoch, ...(echoed && { echoed }) };
    this._put("outbox", msg_id, entry);
    this._causes.push(message);
    if (!echoed) this._showNext(entry);
  }

  /** Writes the dismissal of categories or keys without an end. It takes what the person has seen on
   * this device: what the node has told it, and by id what the device shows beyond that. What has
   * arrived elsewhere meanwhile stays. Idempotent, as `write` is. */
  dismissSeen(message: Message, now: Time): void {
    const known = this.outbox.get(message.msg_id);
    if (known && repeatsOpen(known.message, message)) return;
    const seen = clausesOf(message).flatMap((clause) =>
      this._matched(message, clause).filter(
        (item) =>
          this._isBeyondCursor(clause, item) && this._isLiveHere(item, now) && hasBegunFor(clause, item, now),
      ),
    );
    this.write(namingAlso(withEnds(message, () => ({ time: this.device.cursor || EARLIEST_TIME })), seen), now);
  }

  /** Whether the node has not told of the item, or it has begun since. */
  private _isBeyondCursor(clause: Clause, item: Item): boolean {
    const isTold = this.facts.has(item.msg_id);
    return !isTold || (comparesTime(clause) && timeOf(item) > this.device.cursor);
  }

  /** The message that makes an item begin again at a time; an offset counts from now. Throws `invalid`
   * if the item is not shown, or if the time is not between now and its expiry. */
  snoozed(msgId: MsgID, until: TimeOrOffset, now: Time): Message {
    this._requireLife();
    const item = this.visibleAmong([msgId], now).get(msgId);
    if (!item) throw invalid("msg_id", "is not shown");
    return snoozed(this.device.uid ?? UNKNOWN_UID, item, until, now);
  }

  /** Hides this item on this device. Idempotent. The id of an item that has not arrived is kept until
   * the item comes; of more than 1,000 such ids, the oldest are forgotten. */
  hide(msgId: MsgID): void {
    this._requireLife();
    if (this._hasCome(msgId)) this._put("hidden", msgId, true);
    else if (!this.awaited.has(msgId)) this._append("awaited", msgId, this._nextNumber());
  }

  /** Puts a record after all others of its kind, of which the oldest beyond the last 1,000 go. */
  private _append(kind: "awaited" | "rejected", msgId: MsgID, record: number | RejectedEntry): void {
    this._put(kind, msgId, record);
    const names = [...this[kind]].sort(([, a], [, b]) => byNumber(a, b)).map(([name]) => name);
    this._drop(kind, names.slice(0, -MAX_KEPT));
  }

  /** Whether the item exists here. What is shown does not decide: a dismissal in the outbox may still
   * be rejected. */
  private _hasCome(msgId: MsgID): boolean {
    return this.facts.has(msgId) || this.outbox.has(msgId);
  }

  /** Forgets rejected messages. Idempotent. */
  discard(msgIds: Iterable<MsgID>): void {
    this._drop("rejected", msgIds);
  }

  private _drop(kind: string, names: Iterable<string>): void {
    for (const name of names) this._put(kind, name);
  }

  /** Keeps the offset of the node's clock, if it differs by a second or more. */
  withClockOffset(clock_offset: number): void {
    if (Math.abs(clock_offset - this.device.clock_offset) >= SECOND) this._setDevice({ clock_offset });
  }

  // The life of the user

  /** Nothing of the user is left, who was erased at the ctime `epoch`; null: nobody has said when, and
   * the next welcome does. Idempotent: an erase that the device was wiped for changes nothing, also
   * if a new life has begun. */
  wiped(epoch: Time | null): void {
    if (epoch === null ? this.device.erased : this.device.epoch === epoch) return;
    for (const [kind, records] of Object.entries(this._kinds))
      this._drop(kind, [...records.keys()].filter(Boolean));
    this.knownSince = 0;
    this._setDevice({ epoch, erased: true, cursor: 0 });
    this._settle();
  }

  /** After an erase, take writes again. */
  inNewLife(): void {
    this._setDevice({ erased: false });
  }

  /** The error of all writes while the user is erased. */
  erasure(): GregorError | undefined {
    const { erased, epoch } = this.device;
    if (!erased) return undefined;
    return new GregorError({
      code: "erased",
      action: "stop",
      message: "the user was erased; `reconnect` begins a new life",
      epoch: epoch ?? 0,
    });
  }

  private _requireLife(): void {
    const erasure = this.erasure();
    if (erasure) throw erasure;
  }

  // Changes received from the node

  /** A node has reported the user and the epoch, of which a device that has never had a welcome does
   * not know. An earlier one is that of a restored backup: it comes with the snapshot that replaces
   * the facts. */
  welcomed(uid: UID, epoch: Time): void {
    this.ownedBy(uid);
    this._setDevice({ erased: false, epoch: this.device.epoch ?? epoch });
  }

  /** Sets the user of this replica. Throws `setup` if it belongs to another user. */
  ownedBy(uid: UID): void {
    const known = this.device.uid ?? uid;
    if (known !== uid)
      throw stop("setup", `this store belongs to the user ${known}, not ${uid}; use another store`);
    this._setDevice({ uid });
  }

  /** Replays messages that continue the facts, which are then complete up to `cursor`. Idempotent:
   * messages up to the present cursor are ignored. */
  apply(messages: readonly StoredMessage[], cursor: Time): void {
    const known = this.device.cursor;
    // Dead items are forgotten, so a repeated creation must not bring its item back.
    const fresh = messages.filter(({ ctime }) => ctime > known);
    for (const message of fresh) this.facts.replay(message);
    this._causes.push(...fresh);
    this._echo(fresh.map(({ msg_id }) => msg_id));
    this._moveTo(Math.max(cursor, known));
  }

  /** Replaces the facts by the items of a snapshot, which was read at this epoch (null: the one that
   * is known). The outbox stays, and so do the hidden ids of the items that still exist. */
  applySnapshot(items: readonly Item[], cursor: Time, epoch: Time | null = null): void {
    const after = new Set(items.map(({ msg_id }) => msg_id));
    for (const msgId of this.facts.keys()) if (!after.has(msgId)) this.facts.delete(msgId);
    for (const item of items) this.facts.set(item.msg_id, item);
    this._echo(after);
    this._setDevice({ epoch: epoch ?? this.device.epoch });
    this.knownSince = cursor;
    this._moveTo(cursor);
  }

  private _moveTo(cursor: Time): void {
    this._setDevice({ cursor });
    this._forget(cursor);
    this._settle();
  }

  /** As soon as the node has sent a message of the outbox back, the facts have the truth about it. A
   * node stores the outbox in order, so it has also stored the entries before it, even if it does not
   * send those that are dead by now. */
  private _echo(sent: Iterable<MsgID>): void {
    const unechoed = [...this.outbox].filter(([, { echoed }]) => !echoed);
    const ids = new Set(sent);
    const last = maxOf(unechoed.map(([msgId, { number }]) => (ids.has(msgId) ? number : 0)));
    for (const [msgId, entry] of unechoed) {
      if (entry.number <= last) this._put("outbox", msgId, { ...entry, echoed: true });
    }
  }

  /** Applies the node's results for messages of the outbox: stored ones get their ctime, and leave
   * the outbox if they change nothing on this device; rejected ones move from the outbox to
   * `rejected`. */
  applyResults(results: readonly (readonly [Message, Result])[]): void {
    for (const [message, result] of results) {
      this._causes.push(message);
      const { msg_id } = message;
      const { error } = result;
      const entry = this.outbox.get(msg_id);
      if (!entry) continue;
      if (error) this._append("rejected", msg_id, { number: this._nextNumber(), message, error });
      this._put("outbox", msg_id, error ? undefined : this._acknowledged(entry, result));
    }
    this._settle();
  }

  /** The entry with its ctime; undefined if no frame will bring what it changes on this device. */
  private _acknowledged(entry: OutboxEntry, result: Result): OutboxEntry | undefined {
    const { status, visible, starts_at, expires_at, replaced } = result;
    // The item of a duplicate may have died later: then the frames that are still to come bring it,
    // and its dismissal after it. One that expires may only have expired by the node's clock, and one
    // that starts may not have begun.
    const dead = status === "stored" && visible === false && !starts_at && !expires_at;
    const message = { ...entry.message, ctime: result.ctime || this.device.cursor };
    const acknowledged = { ...entry, message, ...(dead && { dead }) };
    const isTold =
      acknowledgedPart(acknowledged, this.device.device_id) && (!dead || message.dismissal || replaced);
    return isTold ? acknowledged : undefined;
  }

  /** Whether the facts have this hash at `asOf`. A node tells a device only what it sees. */
  hashMatches(asOf: Time, hash: string): boolean {
    this._hashSum ??= sumOf(this.facts.items.values());
    return hashText(this._hashSum - sumOf(this.facts.expired(asOf))) === hash;
  }

  /** A sync is complete, which the node read at the instant `asOf`. What was created and dismissed
   * since the cursor before it was never sent. */
  synced(asOf: Time): void {
    this.knownSince = this.device.cursor;
    this._forget(asOf);
    this._settle();
  }

  /** Forgets what is dead, and what expired a while before an instant that a node told. */
  private _forget(told: Time): void {
    const [hasDied, expired] = this.facts.forget(told - EXPIRY_GRACE);
    if (hasDied) this.knownSince = this.device.cursor;
    this.knownSince = maxOf([this.knownSince, ...expired.map(({ expires_at = 0 }) => expires_at)]);
  }

  // Queries

  /** The messages of the outbox that are not acknowledged, in the order of writing. */
  unsent(): readonly Message[] {
    return this._waiting().map(({ message }) => message);
  }

  /** The unsent messages to send next, with the uid set: at least one, if there are any, and
   * otherwise up to these limits. */
  window(maxMessages: number, maxBytes: number): readonly Message[] {
    const { uid } = this.device;
    let bytes = 0;
    return this.unsent()
      .slice(0, maxMessages)
      .filter((message, place) => (bytes += sizeOf(message)) <= maxBytes || !place)
      .map((message) => ({ ...message, uid: uid ?? message.uid }));
  }

  private _waiting(): readonly OutboxEntry[] {
    return [...this.outbox.values()].filter((entry) => !isAcknowledged(entry)).sort(byNumber);
  }

  /** The rejected messages, in the order of rejection. */
  rejectedEntries(): readonly RejectedEntry[] {
    return [...this.rejected.values()].sort(byNumber);
  }

  /** Those of the items with these ids that are visible on this device now. */
  visibleAmong(msgIds: Iterable<MsgID>, now: Time): Map<MsgID, Item> {
    const items = [...msgIds].flatMap((msgId) => this._shown.get(msgId) ?? []);
    return new Map(this._visibleOf(items, now).map((item) => [item.msg_id, item]));
  }

  private _visibleOf(items: readonly Item[], time: Time): readonly Item[] {
    return items.filter((item) => this._isLiveHere(item, time) && hasBegun(item, time));
  }

  /** The items visible on this device now. */
  visible(now: Time): Map<MsgID, Item> {
    return this.visibleAmong(this._shown.keys(), now);
  }

  state(now: Time): State {
    return new State(this.visible(now).values(), now);
  }

  /** The state that the device showed, or will show, at a stated time, without the items that are
   * hidden now. Throws `history-forgotten` for a time before `knownSince`. */
  stateAt(at: Time): State {
    if (at < this.knownSince) {
      throw stop("history-forgotten", `known here from ${this.knownSince} on; ask the server`);
    }
    return new State(this._visibleOf(this._shown.at(at), at), at);
  }

  /** A time later than this one, and not later than when the next item begins or expires; Infinity if
   * none does. */
  nextChange(after: Time): Time {
    return this._shown.nextChange(after);
  }

  /** The item with this key that is visible on this device: of two, its own first. */
  withKey(key: Key, now: Time): Item | undefined {
    return this._visibleOf(this._shown.withKey(key), now).at(-1);
  }

  /** The items with this key that are visible on this device, or will be when they begin. */
  liveWithKey(key: Key, now: Time): readonly Item[] {
    return this._shown.withKey(key).filter((item) => this._isLiveHere(item, now));
  }

  /** Whether the item is live on this device, begun or not, and not hidden. */
  private _isLiveHere(item: Item, time: Time): boolean {
    const { msg_id } = item;
    return isLive(item, this.device.device_id, time) && !this.hidden.has(msg_id) && !this.awaited.has(msg_id);
  }

  // What is shown

  /** Derives everything that follows from the facts, the cursor and the outbox, of which something
   * has changed. Without an outbox, the facts are shown. */
  private _settle(): void {
    for (const msgId of [...this.outbox.keys(), ...this._overlaid]) this._changed.add(msgId);
    const { cursor, device_id, epoch } = this.device;
    // Another tab may have written them before it heard of the erase.
    for (const [msgId, entry] of this.outbox) if (isBefore(entry.epoch, epoch)) this._put("outbox", msgId);
    this._shown = this.facts;
    this._latestCtime = cursor;
    this._overlaid = new Set();
    const acknowledged = [...this.outbox.values()].filter(isAcknowledged);
    for (const entry of acknowledged.sort((a, b) => a.message.ctime - b.message.ctime)) {
      const part = acknowledgedPart(entry, device_id);
      if (entry.message.ctime <= cursor) this._put("outbox", entry.message.msg_id);
      else if (part) this._show(part);
    }
    this._shown.forgetTombstones();
    for (const entry of this._waiting()) if (!entry.echoed) this._showNext(entry);
    this._hideArrived();
  }

  /** Shows an unsent message after all that is shown, as if the node stored it next. */
  private _showNext({ message, written }: OutboxEntry): void {
    this._show({ ...message, ctime: Math.max(written, this._latestCtime + 1) });
  }

  /** Shows a message of the outbox on top of what is shown. */
  private _show(message: StoredMessage): void {
    if (this._shown === this.facts) this._shown = this.facts.copy();
    for (const msgId of this._shown.replay(message)) {
      this._overlaid.add(msgId);
      this._changed.add(msgId);
    }
    this._latestCtime = Math.max(this._latestCtime, message.ctime);
  }

  /** Hides the awaited items that have come, and forgets the hidden ones that are gone. */
  private _hideArrived(): void {
    for (const msgId of this._changed) {
      if (this.awaited.has(msgId) && this.facts.has(msgId)) {
        this._put("awaited", msgId);
        this._put("hidden", msgId, true);
      }
      if (this.hidden.has(msgId) && !this._hasCome(msgId)) this._put("hidden", msgId);
    }
  }
}

/** Whether two records are the same; a removed one is null or undefined. */
const isSame = (a: unknown, b: unknown): boolean => a === b || canonical(a ?? null) === canonical(b ?? null);

const numberOf = (record: number | { readonly number: number }): number =>
  typeof record === "number" ? record : record.number;

/** Whether a life of the user has ended before that of another epoch, which is null after an erase of
 * which nobody has said when. */
const isBefore = (epoch: Time | null | undefined, other: Time | null): boolean =>
  epoch != null && epoch < (other ?? Infinity);

/** The greatest of them; 0 if there are none. */
const maxOf = (numbers: readonly number[]): number => numbers.reduce((a, b) => Math.max(a, b), 0);

const sizeOf = (message: Message): number => byteLength(encode(message));

const byNumber = <T extends Parameters<typeof numberOf>[0]>(a: T, b: T): number => numberOf(a) - numberOf(b);

/** What these items add to the hash. */
function sumOf(items: Iterable<Item | undefined>): bigint {
  let sum = 0n;
  for (const item of items) if (item) sum += entryHash(item.ctime, item.msg_id);
  return sum;
}

/** Whether the item has begun, if the clause leaves what has not. */
const hasBegunFor = (clause: Clause, item: Item, time: Time): boolean =>
  !comparesTime(clause) || hasBegun(item, time);
