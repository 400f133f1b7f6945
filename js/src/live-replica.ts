/**
 * The replica of this tab as it lives: each change of it is shown, saved, and told to other tabs.
 *
 * A change is an operation in a queue. What is queued at the same time is saved in one transaction
 * (group commit). A change shows at once; if it cannot be saved, it is undone, and nothing has
 * changed. Only what is saved is sent to a node.
 */

import type { Environment, Timer } from "./environment.js";
import type { GregorError } from "./errors.js";
import { eventsBetween, rejectionsIn, type Created, type Dismissed, type WriteRejected } from "./events.js";
import { SECOND, type Time } from "./instant.js";
import type { Category, Item, Message, MsgID } from "./message.js";
import { NodeClock } from "./node-clock.js";
import type { OutboxEntry } from "./outbox.js";
import type { Changes } from "./stores/store.js";
import type { Replica } from "./replica.js";
import { compareItems } from "./state.js";

/** How soon a jump of the wall clock, or a suspend, is noticed. So no timer is too long for a browser. */
const TICK_MS = 10_000;
/** Timers of a page in the background may be a minute late; if they are later, the device slept. */
const ASLEEP = 90 * SECOND;
/** A store that takes longer is said to keep nothing. */
const SLOW_MS = 8_000;

/** The user was erased on the server, and everything of it on this device is gone. */
export interface Erased {
  readonly type: "erased";
  readonly epoch: Time;
}

export type ReplicaEvent = Created | Dismissed | WriteRejected | Erased;

/** Changes a replica; if it throws, nothing has changed. It may be run again. */
export type Operation<T> = (replica: Replica, now: Time) => T;

interface Change {
  /** What the server has told, only the leader may write; what another tab has saved, nobody again. */
  readonly kind: "own" | "told" | "heard";
  readonly operation: Operation<unknown>;
  /** Those that may change what is visible. */
  readonly messages: readonly Message[];
  readonly resolve: (result: never) => void;
  readonly reject: (error: unknown) => void;
}

/** What a live replica needs of its client. */
export interface ReplicaListener {
  /** Saves a change, in the leader's term if the server has told it. Resolves with the records as
   * they are now. */
  save(changes: Changes, isTold: boolean): Promise<Changes>;
  /** What has happened; if that is nothing, still something may be shown otherwise. */
  onChange(events: readonly ReplicaEvent[]): void;
  /** All that the replica holds is saved now. */
  onSaved(): void;
  /** Whether the replica has all that other tabs have saved before what it has. */
  isComplete(): boolean;
  /** Some time has passed, in which the device may have been asleep. */
  onTick(mayHaveSlept: boolean): void;
}

export class LiveReplica {
  clock: NodeClock;
  /** Whether all that the replica holds is saved. */
  isSaved = false;
  isOpen = false;
  /** Whether the store could save the last change, and in good time. */
  isStoreWorking = true;
  /** Counts how often what is visible has changed. */
  version = 0;
  private readonly _queue: Change[] = [];
  /** The replica that was loaded again, until what is being saved is saved. */
  private _next: Replica | undefined;
  private _visible = new Map<MsgID, Item>();
  /** The visible items by the prefixes that were asked for, until they change. */
  private readonly _lists = new Map<Category, readonly Item[]>();
  private _shownAt: Time = 0;
  /** When the next item begins or expires. */
  private _due: Time = Infinity;
  private _timer: Timer;
  private _timerSetAt = 0;
  private _ending: GregorError | undefined;

  /** It shows this replica; until it is opened, it saves nothing. */
  constructor(
    public replica: Replica,
    private readonly _environment: Environment,
    private readonly _listener: ReplicaListener,
  ) {
    this.clock = new NodeClock(_environment);
  }

  /** Begins with the replica that was saved. What is visible at the start is not reported. */
  open(replica: Replica): void {
    this.isOpen = true;
    this.replica = replica;
    this.clock = new NodeClock(this._environment, replica.device.clock_offset);
    this._visible = new Map(replica.visible(this.clock.now()));
    this._lists.clear();
    this.version++;
    this.refresh();
    void this._saveQueue();
  }

  /** Resolves when what was queued is saved, or could not be. */
  async drained(): Promise<void> {
    await this.change(() => {}).catch(() => {});
  }

  /** Nothing is changed from now on, because of this error. */
  end(error: GregorError): void {
    this._ending = error;
    this._environment.clearTimeout(this._timer);
    for (const { reject } of this._queue.splice(0)) reject(error);
  }

  // Reading

  /** The visible items whose category begins with the prefix, in order: the same array, as long as
   * none of them changes. */
  items(prefix: Category): readonly Item[] {
    this.now();
    const known = this._lists.get(prefix);
    if (known) return known;
    const items = [...this._visible.values()].filter(({ category }) => category.startsWith(prefix));
    this._lists.set(prefix, items.sort(compareItems));
    return items;
  }

  /** The node's time. Whatever has begun or expired by it is shown. */
  now(): Time {
    const now = this.clock.now();
    if (now >= this._due) this.refresh();
    return now;
  }

  // Changing

  /** Changes the replica, and resolves when that is saved. Rejects with what the operation throws,
   * or with `unavailable` if the change cannot be saved; then nothing has changed. */
  change<T>(
    operation: Operation<T>,
    messages: readonly Message[] = [],
    kind: "own" | "told" = "own",
  ): Promise<T> {
    return new Promise((resolve, reject) => this._enqueue({ kind, operation, messages, resolve, reject }));
  }

  private _enqueue(change: Change): void {
    if (this._ending) return change.reject(this._ending);
    this._queue.push(change);
    if (this.isSaved) void this._saveQueue();
  }

  /** A node has told its time, after it was asked at this time of the monotonic clock. */
  nodeToldTime(time: Time, asked?: number): void {
    this.clock.told(time, asked);
    this.refresh();
  }

  /** Whether the outbox is as it is stored, and has no hole: it is sent in the order of writing. */
  get maySend(): boolean {
    return this.isSaved && this._listener.isComplete();
  }

  /** Takes over what another tab has saved. */
  hear(changes: Changes): void {
    this._enqueue({
      kind: "heard",
      operation: (replica) => replica.applyRecords(changes),
      messages: causesIn(changes),
      resolve: () => this._listener.onChange(rejectionsIn(changes)),
      reject() {},
    });
  }

  /** Replaces the replica by one that was loaded again, which other tabs have saved. */
  reload(replica: Replica): void {
    this._next = replica;
    const operation = (): void => {
      this.replica = replica;
      if (this._next === replica) this._next = undefined;
      this._due = 0; // all of it may differ
    };
    this._enqueue({ kind: "heard", operation, messages: [], resolve() {}, reject() {} });
  }

  /** Shows the replica by the time, and what has changed for these ids. */
  refresh(changed: Iterable<MsgID> = [], messages: readonly Message[] = []): void {
    const before = this._shownAt;
    const now = (this._shownAt = this.clock.now());
    const isAll = now >= this._due || now < before;
    const visible = isAll ? this.replica.visible(now) : this.replica.visibleAmong(changed, now);
    const [gone, come] = this._replace(isAll ? [...this._visible.keys(), ...visible.keys()] : changed, visible);
    this._due = this.replica.nextChange(now) ?? Infinity;
    this._setTimer();
    this._listener.onChange(eventsBetween(gone, come, now, messages));
  }

  /** Takes the items with these ids from what is visible now. Returns those that were there before,
   * and those that are there now, but for those that are the same. */
  private _replace(msgIds: Iterable<MsgID>, visible: ReadonlyMap<MsgID, Item>): [Map<MsgID, Item>, Map<MsgID, Item>] {
    const before = new Map<MsgID, Item>();
    const after = new Map<MsgID, Item>();
    for (const msgId of msgIds) {
      const was = this._visible.get(msgId);
      const is = visible.get(msgId);
      if (was === is) continue;
      this._visible.delete(msgId);
      if (was) before.set(msgId, was);
      if (is) {
        after.set(msgId, is);
        this._visible.set(msgId, is);
      }
      this.version++;
      for (const prefix of this._lists.keys()) {
        if ([was, is].some((item) => item?.category.startsWith(prefix))) this._lists.delete(prefix);
      }
    }
    return [before, after];
  }

  private _setTimer(): void {
    const { setTimeout, clearTimeout } = this._environment;
    clearTimeout(this._timer);
    if (this._ending) return;
    this._timerSetAt = this.clock.monotonic();
    const ms = Math.ceil((this._due - this._shownAt) / 1000);
    this._timer = setTimeout(() => {
      this._listener.onTick(this.clock.monotonic() - this._timerSetAt > ASLEEP);
      this.refresh();
    }, Math.min(TICK_MS, ms));
  }

  /** Runs and saves the operations in the queue, as many at once as may be saved together. */
  private async _saveQueue(): Promise<void> {
    this.isSaved = false;
    for (let first; (first = this._queue[0]); ) {
      const end = this._queue.findIndex(({ kind }) => kind !== first.kind);
      await this._save(first.kind, this._queue.splice(0, end < 0 ? this._queue.length : end));
    }
    this.isSaved = true;
    this._listener.onSaved();
  }

  private async _save(kind: Change["kind"], batch: readonly Change[]): Promise<void> {
    const wasErased = this.replica.device.erased;
    const done = this._run(batch);
    const { replica } = this;
    const changes: Changes = kind === "heard" ? new Map() : replica.take();
    this.refresh(replica.takeChanged(), done.flatMap(([{ messages }]) => messages));
    try {
      const saved = changes.size ? await this._store(changes, kind === "told") : changes;
      replica.saved(saved);
      this._next?.applyRecords(saved); // it was read before that
    } catch (error) {
      replica.rollback();
      this.refresh(replica.takeChanged());
      for (const [{ reject }] of done) reject(error);
      return;
    }
    const { erased, epoch, clock_offset } = replica.device;
    if (kind === "heard" && Math.abs(clock_offset - this.clock.offset()) >= SECOND) {
      this.clock = new NodeClock(this._environment, clock_offset); // a node has told the leader
    }
    this._listener.onChange([
      ...rejectionsIn(changes),
      ...(erased && !wasErased ? [{ type: "erased", epoch: epoch ?? 0 } as const] : []),
    ]);
    for (const [{ resolve }, result] of done) resolve(result);
  }

  /** The results of the operations. One that throws leaves nothing behind: the others run again. */
  private _run(batch: readonly Change[]): (readonly [Change, never])[] {
    const now = this.now();
    const done: (readonly [Change, never])[] = [];
    for (const change of batch) {
      try {
        if (change.kind === "told") this.replica.withClockOffset(this.clock.offset());
        done.push([change, change.operation(this.replica, now) as never]);
      } catch (error) {
        change.reject(error);
        this.replica.rollback();
        return this._run(batch.filter((other) => other !== change));
      }
    }
    return done;
  }

  /** Waits for the store as long as it takes: nobody knows whether a save that is given up has
   * happened. Meanwhile, the status says that nothing is durable. */
  private async _store(changes: Changes, isTold: boolean): Promise<Changes> {
    const { setTimeout, clearTimeout } = this._environment;
    const says = (isWorking: boolean): void => {
      this.isStoreWorking = isWorking;
      this._listener.onChange([]);
    };
    const timer = setTimeout(() => says(false), SLOW_MS);
    try {
      const saved = await this._listener.save(changes, isTold);
      says(true);
      return saved;
    } catch (error) {
      if ((error as Partial<GregorError>).code !== "not-leader") says(false);
      throw error;
    } finally {
      clearTimeout(timer);
    }
  }
}

/** The messages that have caused a change of records, as far as these show them. */
const causesIn = (changes: Changes): Message[] =>
  [...changes].flatMap(([key, record]) => {
    if (record && key.startsWith("outbox/")) return [(record as OutboxEntry).message];
    if (!record || !key.startsWith("item/")) return [];
    const item = record as Item;
    return [{ ...item, uid: "", creation: item }];
  });
