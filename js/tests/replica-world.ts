/** One device's replica, its store and another tab, and the node that they sync with: for laws. */

import fc from "fast-check";
import { Facts } from "../src/facts.js";
import type { Result } from "../src/frames.js";
import { SECOND, type Time } from "../src/instant.js";
import type { Item, Message, MsgID, StoredMessage } from "../src/message.js";
import { Replica } from "../src/replica.js";
import { entryHash, hashText } from "../src/state-hash.js";
import type { RecordKey } from "../src/stores/store.js";
import { isLive } from "../src/visibility.js";

const DEVICE = "phone";
const START = 1_600_000_000 * SECOND;
const CATEGORIES = ["chat", "chat.room", "theme"] as const;

/** What happens next, and two numbers that say how. */
export type Step = readonly [action: keyof typeof ACTIONS, a: number, b: number];

const ACTIONS = {
  write: (world: World, a: number, b: number) => world.write(a, b),
  dismissSeen: (world: World, a: number, b: number) => world.dismissSeen(a, b),
  backend: (world: World, a: number, b: number) => world.store(world.message(a, b, undefined)),
  consume: (world: World) => world.consume(),
  acknowledge: (world: World) => world.acknowledge(),
  feed: (world: World, a: number) => world.feed(a + 1),
  snapshot: (world: World) => world.snapshot(),
  synced: (world: World) => world.replica.synced(world.now),
  hide: (world: World, a: number) => world.replica.hide(`m${a}`),
  wait: (world: World, a: number) => world.wait(a),
  wipe: (world: World, a: number) => a === 0 && world.wipe(),
};

const action = fc.constantFrom<Step[0]>(
  ...(["write", "write", "backend", "backend", "consume", "acknowledge", "feed", "feed"] as const),
  ...(Object.keys(ACTIONS) as Step[0][]),
);
export const steps: fc.Arbitrary<Step[]> = fc.array(fc.tuple(action, fc.nat(7), fc.nat(7)), {
  maxLength: 40,
});

export class World {
  now: Time = START;
  readonly records = new Map<RecordKey, unknown>();
  replica = Replica.load(this.records, DEVICE);
  /** What another tab knows of what this one has saved. */
  follower = Replica.load(this.records, DEVICE);
  private readonly _node = new Facts();
  private _log: StoredMessage[] = [];
  private _fed = 0;
  private _acks: (readonly [Message, Result])[] = [];
  private _count = 0;

  constructor() {
    this.save();
  }

  take(...[action, a, b]: Step): void {
    this.now += 1000;
    ACTIONS[action](this, a, b);
  }

  /** Saves what has changed; the other tab hears of it. */
  save(): void {
    const changes = this.replica.take();
    for (const [key, record] of changes) {
      if (record === null) this.records.delete(key);
      else this.records.set(key, structuredClone(record));
    }
    this.replica.saved(changes);
    this.follower.applyRecords(structuredClone(changes));
  }

  loaded(): Replica {
    return Replica.load(structuredClone(this.records), DEVICE);
  }

  /** A message with the next id, which dismisses only what exists: so no item is dead when stored. */
  message(a: number, b: number, device_id: string | undefined): Message {
    const category = CATEGORIES[a % 3] ?? "chat";
    const base = { uid: "u", msg_id: `m${this._count++}`, ...(device_id && { device_id }) };
    const times = {
      ...(b % 4 === 1 && { starts: { offset: SECOND } }),
      ...(b % 3 === 1 && { expires: { offset: 3 * SECOND } }),
    };
    const key = b > 3 && { key: `k${a % 2}` };
    const known = [...this._node.keys()].slice(0, (a % 2) + 1);
    switch (a) {
      case 5:
        return { ...base, dismissal: { ranges: [{ category: "chat", prefix: b > 3 }] } };
      case 6:
        return { ...base, dismissal: { keys: [{ key: `k${b % 2}` }] } };
      case 7:
        return {
          ...base,
          creation: { category, body: b },
          dismissal: { msg_ids: known.length ? known : ["none"] },
        };
      default:
        return { ...base, creation: { category, body: b, ...times, ...key } };
    }
  }

  write(a: number, b: number): void {
    this.replica.write(this.message(a, b, b === 2 ? DEVICE : undefined), this.now);
  }

  dismissSeen(a: number, b: number): void {
    const ranges = [{ category: CATEGORIES[a % 3] ?? "chat", prefix: b > 3 }];
    const dismissal = b % 2 ? { ranges } : { keys: [{ key: `k${a % 2}` }] };
    this.replica.dismissSeen(
      { uid: "u", msg_id: `m${this._count++}`, device_id: DEVICE, dismissal },
      this.now,
    );
  }

  /** The node stores a message of any sender. */
  store(message: Message): StoredMessage {
    const { ctime: last = 0 } = this._log.at(-1) ?? {};
    const stored = { ...message, ctime: Math.max(this.now, last + 1) };
    this._node.replay(stored);
    this._log.push(stored);
    return stored;
  }

  /** The node takes what is unsent, and rejects some; a message that it has, it does not store again. */
  consume(): void {
    for (const message of this.replica.window(3, 1e6)) {
      const known = this._log.find(({ msg_id }) => msg_id === message.msg_id);
      const isRefused = !known && message.msg_id.endsWith("3");
      if (isRefused) {
        this._acks.push([
          message,
          { status: "rejected", error: { code: "conflict", message: "no", action: "stop" } },
        ]);
      } else {
        const { ctime } = known ?? this.store(message);
        this._acks.push([message, { status: known ? "duplicate" : "stored", ctime, visible: true }]);
      }
    }
  }

  acknowledge(): void {
    this.replica.applyResults(this._acks.splice(0));
  }

  /** The device is told of the next messages, and of some again. */
  feed(count: number): void {
    this._fed = Math.min(this._fed + count, this._log.length);
    const told = this._log.slice(Math.max(0, this._fed - count - 1), this._fed);
    this.replica.apply(told, told.at(-1)?.ctime ?? 0);
  }

  snapshot(): void {
    this._fed = this._log.length;
    this.replica.applySnapshot([...this._node.items.values()], this._log.at(-1)?.ctime ?? 0);
  }

  wait(seconds: number): void {
    this.now += (seconds > 6 ? 100 : seconds) * SECOND;
  }

  wipe(): void {
    this.replica.wiped(this.now);
    this.replica.inNewLife();
    for (const msgId of this._node.keys()) this._node.delete(msgId);
    this._log = [
      { uid: "u", msg_id: `m${this._count++}`, ctime: this.now, dismissal: { msg_ids: ["none"] } },
    ];
    this._fed = 0;
    this._acks = [];
  }

  /** All that is under way arrives. */
  settle(): void {
    while (this.replica.unsent().length) {
      this.consume();
      this.acknowledge();
    }
    this.feed(this._log.length);
  }

  /** What the node shows this device. */
  nodeState(): Item[] {
    return [...this._node.items.values()].filter((item) => isLive(item, DEVICE, this.now));
  }

  nodeHash(): string {
    const entries = this.nodeState().map(({ ctime, msg_id }) => entryHash(ctime, msg_id));
    return hashText(entries.reduce((sum, entry) => sum + entry, 0n));
  }
}

/** All that can be seen of a replica: now, later, and in the past. */
export const shown = (replica: Replica, now: Time) => ({
  states: [now, now + SECOND, now + 5 * SECOND].map((time) => replica.state(time).items),
  unsent: replica.unsent(),
  rejected: replica.rejectedEntries(),
  hidden: [...replica.hidden.keys()].sort(),
  awaited: [...replica.awaited].sort(),
  device: replica.device,
});

export const idsOf = (items: Iterable<Item>): MsgID[] => [...items].map(({ msg_id }) => msg_id).sort();
