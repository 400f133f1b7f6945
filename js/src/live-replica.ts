/**
 * The replica of this tab as it lives: each change of it is shown, saved, and told to other tabs.
 *
 * A change is an operation in a queue. What is queued at the same time is saved in one transaction
 * (group commit). A change shows at once; if it cannot be saved, it is undone, and nothing has
 * changed. Only what is saved is sent to a node.
 */

import type { Environment, Timer } from "./environment.js";
import type { GregorError } from "./errors.js";
import { eventsBetween, rejectionsIn, type Created, type Dismissed, type Visible, type WriteRejected } from "./events.js";
import { SECOND, type Time } from "./instant.js";
import type { Category, Item, Message, MsgID } from "./message.js";
import { nodeClock, type NodeClock } from "./node-clock.js";
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
  readonly resolve: (result: never) => void;
  readonly reject: (error: unknown) => void;
}

/** What a live replica needs of its client. */
export interface ReplicaListener {
  /** Saves a change, in the leader's term if the server has told it. Resolves with the records as
   * they are now. */
  save(changes: Changes, isTold: boolean): Promise<Changes>;
  /** Whether there is no gap in the changes that were heard. */
  isComplete(): boolean;
  /** What has happened; if that is nothing, still something may be shown otherwise. */
  onChange(events: readonly ReplicaEvent[]): void;
  /** All that the replica holds is saved now. */
  onSaved(): void;
  /** Some time has passed, in which the device may have been asleep. */
  onTick(mayHaveSlept: boolean): void;
}

export interface LiveReplica {
  readonly replica: Replica;
  readonly clock: NodeClock;
  readonly isOpen: boolean;
  /** Whether all that the replica holds is saved, and it has what other tabs have saved before: what
   * they have written goes to a node in this order, too. */
  readonly mayBeSent: boolean;
  /** Whether the store could save the last change, and in good time. */
  readonly isStoreWorking: boolean;
  /** Counts how often what is visible has changed. */
  readonly version: number;
  /** Begins with the replica that was saved. What is visible at the start is not reported. */
  open(replica: Replica): void;
  /** Nothing is changed from now on, because of this error. */
  end(error: GregorError): void;
  /** The visible items whose category begins with the prefix, in order: the same array, as long as
   * none of them changes. */
  items(prefix: Category): readonly Item[];
  /** The node's time. Whatever has begun or expired by it is shown. */
  now(): Time;
  /** Changes the replica, and resolves when that is saved. Rejects with what the operation throws,
   * or with `unavailable` if the change cannot be saved; then nothing has changed. */
  change<T>(operation: Operation<T>, kind?: "own" | "told"): Promise<T>;
  /** A node has told its time, after it was asked at this time of the monotonic clock. */
  nodeToldTime(time: Time, asked?: number): void;
  /** Takes over what another tab has saved. */
  hear(changes: Changes): void;
  /** Replaces the replica by one that was loaded again, which other tabs have saved. */
  reload(replica: Replica): Promise<void>;
}

/** Shows this replica; until it is opened, it saves nothing. */
export function liveReplica(replica: Replica, environment: Environment, listener: ReplicaListener): LiveReplica {
  const { setTimeout, clearTimeout } = environment;
  const clock = nodeClock(environment);
  let isOpen = false;
  let isSaved = false;
  let isStoreWorking = true;
  let version = 0;
  const queue: Change[] = [];
  let visible = new Map<MsgID, Item>();
  /** The visible items by the prefixes that were asked for, until they change. */
  const lists = new Map<Category, readonly Item[]>();
  let shownAt: Time = 0;
  /** When the next item begins or expires. */
  let due: Time = Infinity;
  let timer: Timer;
  let ending: GregorError | undefined;
  /** What replaces the replica when the save that is under way has ended. */
  let loaded: Replica | undefined;

  // Reading

  function items(prefix: Category): readonly Item[] {
    now();
    const known = lists.get(prefix);
    if (known) return known;
    const found = [...visible.values()].filter(({ category }) => category.startsWith(prefix));
    lists.set(prefix, found.sort(compareItems));
    return found;
  }

  function now(): Time {
    const time = clock.now();
    if (time >= due) refresh();
    return time;
  }

  // Changing

  function change<T>(operation: Operation<T>, kind: Change["kind"] = "own"): Promise<T> {
    return new Promise((resolve, reject) => {
      if (ending) return reject(ending);
      queue.push({ kind, operation, resolve, reject });
      if (isSaved) void saveQueue();
    });
  }

  /** Shows the replica by the time, and what has changed for these ids. */
  function refresh(changed: Iterable<MsgID> = [], messages: readonly Message[] = []): void {
    const before = shownAt;
    const time = (shownAt = clock.now());
    const isAll = time >= due || time < before;
    const next = isAll ? replica.visible(time) : replica.visibleAmong(changed, time);
    const [gone, come] = replace(isAll ? [...visible.keys(), ...next.keys()] : changed, next);
    due = replica.nextChange(time);
    setTimer();
    listener.onChange(eventsBetween(gone, come, time, messages));
  }

  /** Takes the items with these ids from what is visible now. Returns those that were there before,
   * and those that are there now, but for those that are the same. */
  function replace(msgIds: Iterable<MsgID>, next: Visible): readonly [gone: Visible, come: Visible] {
    const gone = new Map<MsgID, Item>();
    const come = new Map<MsgID, Item>();
    for (const msgId of msgIds) {
      const was = visible.get(msgId);
      const is = next.get(msgId);
      if (was?.ctime === is?.ctime) continue; // what is unsent is made again with each frame
      visible.delete(msgId);
      if (was) gone.set(msgId, was);
      if (is) {
        come.set(msgId, is);
        visible.set(msgId, is);
      }
      version++;
      for (const prefix of lists.keys()) {
        if ([was, is].some((item) => item?.category.startsWith(prefix))) lists.delete(prefix);
      }
    }
    return [gone, come];
  }

  function setTimer(): void {
    clearTimeout(timer);
    if (ending) return;
    const setAt = clock.monotonic();
    timer = setTimeout(
      () => {
        listener.onTick(clock.monotonic() - setAt > ASLEEP);
        refresh();
      },
      Math.min(TICK_MS, Math.ceil((due - shownAt) / 1000)),
    );
  }

  /** Runs and saves the operations in the queue, as many at once as may be saved together. */
  async function saveQueue(): Promise<void> {
    isSaved = false;
    for (let first; (first = queue[0]); ) {
      const { kind } = first;
      const end = queue.findIndex((other) => other.kind !== kind);
      await save(kind, queue.splice(0, end < 0 ? Infinity : end));
    }
    isSaved = true;
    listener.onSaved();
  }

  async function save(kind: Change["kind"], batch: readonly Change[]): Promise<void> {
    const before = replica.device;
    const done = run(batch);
    const changes: Changes = kind === "heard" ? new Map() : replica.take();
    refresh(replica.takeChanged(), replica.takeCauses());
    try {
      const saved = changes.size ? await store(changes, kind === "told") : changes;
      replica.saved(saved);
      loaded?.applyRecords(saved);
    } catch (error) {
      replica.rollback();
      refresh(replica.takeChanged());
      for (const [{ reject }] of done) reject(error);
      return;
    }
    const { erased, epoch, clock_offset } = replica.device;
    // A node has told the leader its time.
    const isOther = clock_offset !== before.clock_offset && Math.abs(clock_offset - clock.offset()) >= SECOND;
    if (kind === "heard" && isOther) clock.restart(clock_offset);
    listener.onChange([
      ...rejectionsIn(changes),
      ...(erased && !before.erased ? [{ type: "erased", epoch: epoch ?? 0 } as const] : []),
    ]);
    for (const [{ resolve }, result] of done) resolve(result);
  }

  /** The results of the operations. One that throws leaves nothing behind: the others run again. */
  function run(batch: readonly Change[]): (readonly [Change, never])[] {
    const time = now();
    const perform = (change: Change): readonly [Change, never] => {
      if (change.kind === "told") replica.withClockOffset(clock.offset());
      return [change, change.operation(replica, time) as never];
    };
    let done: (readonly [Change, never])[] = [];
    for (const change of batch) {
      try {
        done.push(perform(change));
      } catch (error) {
        change.reject(error);
        replica.rollback();
        done = done.map(([other]) => perform(other));
      }
    }
    return done;
  }

  /** Waits for the store as long as it takes: nobody knows whether a save that is given up has
   * happened. Meanwhile, the status says that nothing is durable. */
  async function store(changes: Changes, isTold: boolean): Promise<Changes> {
    const says = (isWorking: boolean): void => {
      isStoreWorking = isWorking;
      listener.onChange([]);
    };
    const timer = setTimeout(() => says(false), SLOW_MS);
    try {
      const saved = await listener.save(changes, isTold);
      says(true);
      return saved;
    } catch (error) {
      if ((error as Partial<GregorError>).code !== "not-leader") says(false);
      throw error;
    } finally {
      clearTimeout(timer);
    }
  }

  return {
    get replica() {
      return replica;
    },
    clock,
    get isOpen() {
      return isOpen;
    },
    get mayBeSent() {
      return isSaved && listener.isComplete();
    },
    get isStoreWorking() {
      return isStoreWorking;
    },
    get version() {
      return version;
    },
    open(saved) {
      isOpen = true;
      replica = saved;
      clock.restart(replica.device.clock_offset);
      visible = new Map(replica.visible(clock.now()));
      lists.clear();
      version++;
      refresh();
      void saveQueue();
    },
    end(error) {
      ending = error;
      clearTimeout(timer);
      for (const { reject } of queue.splice(0)) reject(error);
    },
    items,
    now,
    change,
    nodeToldTime(time, asked) {
      clock.told(time, asked);
      refresh();
    },
    hear(changes) {
      change((replica) => replica.applyRecords(changes), "heard").then(
        () => listener.onChange(rejectionsIn(changes)),
        () => {},
      );
    },
    async reload(read) {
      const later = queue.splice(0).filter(({ kind }) => kind !== "heard"); // it has what was heard
      loaded = read;
      const replaced = change(() => {
        replica = loaded ?? replica;
        loaded = undefined;
        due = 0; // all of it may differ
      }, "heard");
      queue.push(...later);
      await replaced.catch(() => {});
    },
  };
}
