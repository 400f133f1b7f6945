/** The laws of a replica: for each order of operations it loses no written message, agrees with the
 * node, and reports each change once. */

import fc from "fast-check";
import { describe, expect, test, vi } from "vitest";
import { eventsBetween } from "../src/events.js";
import { SECOND } from "../src/instant.js";
import type { Item, Message, MsgID, StoredMessage } from "../src/message.js";
import { Replica } from "../src/replica.js";
import type { RecordKey } from "../src/stores/store.js";
import { World, idsOf, shown, steps, type Step } from "./replica-world.js";

const NOW = 1_600_000_000 * SECOND;
const HASH_OF_NOTHING = "0".repeat(64);

const newReplica = (): Replica => Replica.load(new Map(), "phone");

const created = (msg_id: MsgID, ctime: number, more: Partial<Message["creation"]> = {}): StoredMessage => ({
  uid: "u",
  msg_id,
  ctime,
  creation: { category: "chat", body: null, ...more },
});

const written = (msg_id: MsgID): Message => ({
  uid: "u",
  msg_id,
  creation: { category: "chat", body: null },
});

/** For each history, and after each of its steps, when what has changed is saved. */
const always = (law: (world: World) => void, before: (world: World, step: Step) => void = () => {}): void =>
  fc.assert(
    fc.property(steps, (history) => {
      const world = new World();
      for (const step of history) {
        before(world, step);
        world.take(...step);
        world.save();
        law(world);
      }
    }),
    { numRuns: 300 },
  );

describe("for every history", () => {
  test("another tab that takes over what was saved shows the same", () => {
    always(({ replica, follower, now }) => expect(shown(follower, now)).toStrictEqual(shown(replica, now)));
  });

  test("another tab that knows what was shown at a time says the same of it", () => {
    always(({ replica, follower, now }) => {
      for (const at of [
        now - SECOND,
        now - 1500,
        now,
        now + SECOND,
        replica.knownSince,
        follower.knownSince,
      ]) {
        if (at >= follower.knownSince) expect(follower.stateAt(at)).toStrictEqual(replica.stateAt(at));
      }
    });
  });

  test("a replica that is loaded shows the same, and has nothing to save", () => {
    always((world) => {
      const loaded = world.loaded();
      expect(shown(loaded, world.now)).toStrictEqual(shown(world.replica, world.now));
      expect(loaded.take().size).toBe(0);
    });
  });

  test("what cannot be saved is rolled back, as if it had not happened", () => {
    always(
      () => {},
      (world, step) => {
        const { replica, now } = world;
        const before = [shown(replica, now), replica.knownSince];
        replica.hide("m1");
        replica.write(written(`extra ${step[1]}`), now);
        replica.apply([created("extra", replica.device.cursor + 5)], replica.device.cursor + 5);
        replica.applySnapshot([], replica.device.cursor + 1);
        replica.synced(now);
        replica.wiped(now + 1);
        replica.rollback();
        expect([shown(replica, now), replica.knownSince]).toStrictEqual(before);
        expect(replica.take().size).toBe(0);
      },
    );
  });

  test("the ids that are said to have changed are all that have, and their events give the state", () => {
    let visible: ReadonlyMap<MsgID, Item> = new Map();
    fc.assert(
      fc.property(steps, (history) => {
        const world = new World();
        visible = new Map();
        for (const step of history) {
          const { replica } = world;
          if (step[0] === "wait") visible = replica.visible(world.now + step[1] * SECOND);
          world.take(...step);
          if (step[0] === "wait") visible = replica.visible(world.now);
          world.save();
          const changed = replica.takeChanged();
          const begun = replica.visible(world.now);
          const among = new Map([...visible].filter(([id]) => changed.has(id)));
          const replayed = new Set(visible.keys());
          for (const event of eventsBetween(among, replica.visibleAmong(changed, world.now), world.now)) {
            expect(replayed.has(event.item.msg_id)).toBe(event.type === "dismissed");
            if (event.type === "created") replayed.add(event.item.msg_id);
            else replayed.delete(event.item.msg_id);
          }
          const timed = (id: MsgID): boolean => {
            const item = visible.get(id) ?? begun.get(id);
            return !!(item?.starts_at ?? item?.expires_at);
          };
          const withoutTimed = (ids: Iterable<MsgID>): MsgID[] => [...ids].filter((id) => !timed(id)).sort();
          expect(withoutTimed(replayed)).toStrictEqual(withoutTimed(begun.keys()));
          visible = begun;
        }
      }),
      { numRuns: 300 },
    );
  });

  test("when all has arrived, it shows what the node does, but for what is hidden", () => {
    fc.assert(
      fc.property(steps, (history) => {
        const world = new World();
        for (const step of history) world.take(...step);
        world.settle();
        const { replica, now } = world;
        expect(replica.outbox.size).toBe(0);
        const seen = world
          .nodeState()
          .filter(({ starts_at = 0, msg_id }) => starts_at <= now && !replica.hidden.has(msg_id));
        expect(idsOf(replica.state(now).items)).toStrictEqual(idsOf(seen));
        expect(replica.hashMatches(now, world.nodeHash())).toBe(true);
      }),
      { numRuns: 300 },
    );
  });

  test("the hash that is kept is that of what is loaded", () => {
    always((world) => {
      const { replica, now } = world;
      const knows = (of: Replica, hash: string): boolean => of.hashMatches(now, hash);
      knows(replica, HASH_OF_NOTHING); // from here on it is kept
      const hash = [...new Set([world.nodeHash(), HASH_OF_NOTHING])];
      for (const each of hash) expect(knows(replica, each)).toBe(knows(world.loaded(), each));
    });
  });
});

test("messages in pieces, some of them again, are the same as all at once", () => {
  fc.assert(
    fc.property(
      fc.array(fc.tuple(fc.nat(7), fc.nat(7)), { maxLength: 20 }),
      fc.array(fc.nat(20)),
      (choices, cuts) => {
        const node = new World();
        const log = choices.map(([a, b]) => node.store(node.message(a, b, undefined)));
        const last = log.at(-1)?.ctime ?? 0;
        const whole = newReplica();
        whole.apply(log, last);
        const pieces = newReplica();
        const redeliver = (): void => {
          for (const cut of cuts)
            pieces.apply(log.slice(0, cut), log[Math.min(cut, log.length) - 1]?.ctime ?? 0);
        };
        redeliver();
        for (const message of log) pieces.apply([message], message.ctime);
        redeliver();
        expect(shown(pieces, last)).toStrictEqual(shown(whole, last));
      },
    ),
    { numRuns: 300 },
  );
});

test("a write is shown exactly once, in whatever order it is stored, acknowledged and told of", () => {
  const moves = fc.array(fc.constantFrom("write", "consume", "acknowledge", "feed", "restart"), {
    maxLength: 30,
  });
  fc.assert(
    fc.property(moves, (history) => {
      const world = new World();
      const expected: MsgID[] = [];
      for (const move of history) {
        if (move === "write") {
          const { msg_id } = world.message(0, 0, undefined);
          if (!msg_id.endsWith("3")) {
            world.replica.write(written(msg_id), world.now);
            expected.push(msg_id);
          }
        } else if (move === "restart") {
          world.replica = world.loaded();
        } else {
          world.take(move as "feed", 1, 1);
        }
        world.save();
        expect(idsOf(world.replica.state(world.now).items)).toStrictEqual(expected.toSorted());
      }
    }),
    { numRuns: 300 },
  );
});

test("another tab that hears of a forgotten item does not answer for the time when it was there", () => {
  const replica = newReplica();
  const expires = { time: NOW + SECOND };
  replica.apply([created("m", NOW, { expires })], NOW);
  const follower = Replica.load(replica.take(), "phone");
  replica.saved(replica.take());
  replica.synced(NOW + 100 * SECOND);
  follower.applyRecords(replica.take());
  for (const each of [replica, follower]) {
    expect(() => each.stateAt(NOW)).toThrow(expect.objectContaining({ code: "history-forgotten" }));
    expect(each.stateAt(NOW + SECOND).items).toStrictEqual([]);
  }
});

describe("the outbox", () => {
  const dismissing = (msg_id: MsgID, ...msg_ids: MsgID[]): Message => ({
    uid: "u",
    msg_id,
    dismissal: { msg_ids },
  });
  const visible = (replica: Replica): MsgID[] => idsOf(replica.state(NOW).items);

  test("shows a new item though its id was dismissed before by what is stored", () => {
    const replica = newReplica();
    replica.write(dismissing("d", "m"), NOW);
    replica.applyResults([[dismissing("d", "m"), { status: "stored", ctime: NOW + 1 }]]);
    replica.write(written("m"), NOW);
    expect(visible(replica)).toStrictEqual(["m"]);
  });

  test("does not show a new item whose id was dismissed before by what is unsent", () => {
    const replica = newReplica();
    replica.writeAll([dismissing("d", "m"), written("m")], NOW);
    expect(visible(replica)).toStrictEqual([]);
  });

  test("says that an item has changed which a rejected message no longer dismisses", () => {
    const replica = newReplica();
    replica.apply([created("m", 3)], 5);
    replica.write(dismissing("d", "m"), NOW);
    expect([...replica.takeChanged()]).toContain("m");
    const error = { code: "forbidden", message: "no", action: "stop" } as const;
    replica.applyResults([[dismissing("d", "m"), { status: "rejected", error }]]);
    expect([...replica.takeChanged()]).toContain("m");
    expect(visible(replica)).toStrictEqual(["m"]);
  });

  test("does not show a message whose id the node has told of: the facts decide", () => {
    const replica = newReplica();
    replica.apply([created("m", 3), created("other", 4)], 5);
    replica.write({ ...written("m"), ...dismissing("m", "other") }, NOW);
    expect(visible(replica)).toStrictEqual(["m", "other"]);
    expect(replica.unsent()).toHaveLength(1);
  });
});

describe("what an operation costs", () => {
  /** How many items an operation looks at while it goes through all. */
  function looksAtAll(replica: Replica, operation: () => void): boolean {
    const { items } = replica.facts;
    const walks = [
      vi.spyOn(items, "values"),
      vi.spyOn(items, "keys"),
      vi.spyOn(items, "entries"),
      vi.spyOn(items, "forEach"),
      vi.spyOn(items, Symbol.iterator),
    ];
    operation();
    const looked = walks.some((walk) => walk.mock.calls.length > 0);
    vi.restoreAllMocks();
    return looked;
  }

  function full(): Replica {
    const replica = newReplica();
    const log = Array.from({ length: 1000 }, (_, n) =>
      created(`m${n}`, NOW + n, { key: `k${n}`, expires: { time: NOW + 3600 * SECOND } }),
    );
    replica.apply(log, NOW + 999);
    replica.hashMatches(NOW, HASH_OF_NOTHING);
    replica.nextChange(NOW);
    replica.saved(replica.take());
    return replica;
  }

  test.each<[string, Message]>([
    ["an item", created("new", NOW + 2000)],
    [
      "an item with a key and times",
      created("new", NOW + 2000, { key: "k5", starts: { offset: 5 }, expires: { offset: SECOND } }),
    ],
    ["a dismissal by id", { uid: "u", msg_id: "new", dismissal: { msg_ids: ["m7"] } }],
    ["a dismissal by key", { uid: "u", msg_id: "new", dismissal: { keys: [{ key: "k7" }] } }],
  ])("with an empty outbox, %s makes no look at all live items", (_, message) => {
    const replica = full();
    const looked = looksAtAll(replica, () => {
      replica.apply([{ ...message, ctime: NOW + 2000 }], NOW + 2000);
      replica.synced(NOW + 2000);
      replica.visibleAmong(replica.takeChanged(), NOW + 2000);
      replica.nextChange(NOW + 2000);
      replica.hashMatches(NOW + 2000, HASH_OF_NOTHING);
      replica.saved(replica.take());
    });
    expect(looked).toBe(false);
  });

  test("what is saved is what has changed", () => {
    const replica = full();
    replica.apply(
      [{ uid: "u", msg_id: "new", ctime: NOW + 2000, dismissal: { msg_ids: ["m7"] } }],
      NOW + 2000,
    );
    expect([...replica.take().keys()].sort()).toStrictEqual(["device/", "item/m7"]);
  });
});

describe("records", () => {
  const device = { device_id: "phone", uid: "u", epoch: 0, erased: false, cursor: 5, clock_offset: 7 };
  const { cursor: _, clock_offset: __, ...owner } = device;
  const item = { msg_id: "m", ctime: 3, category: "chat", body: null };
  const entry = { number: 1, written: 3, message: written("w") };

  const load = (records: Readonly<Record<string, unknown>>): Replica =>
    Replica.load(new Map(Object.entries(records) as [RecordKey, unknown][]), "phone");

  test("have the shapes of the Python store", () => {
    const replica = newReplica();
    replica.welcomed("u", 0);
    replica.apply([{ ...created("m", 3), prev: 1 }], 5);
    replica.hide("m");
    replica.hide("later");
    replica.write(written("w"), 9);
    expect(Object.fromEntries(replica.take())).toStrictEqual({
      "owner/": owner,
      "device/": { ...device, clock_offset: 0 },
      "item/m": item,
      "hidden/m": true,
      "awaited/later": 1,
      "outbox/w": { number: 2, written: 9, message: written("w"), epoch: 0 },
    });
  });

  test("what another tab wrote before it heard of an erase goes with that life", () => {
    const erased = load({ "owner/": { ...owner, epoch: 4, erased: true }, "device/": { ...device, epoch: 4, erased: true } });
    const unknown = load({ "owner/": { ...owner, epoch: null }, "device/": { ...device, epoch: null } });
    for (const replica of [erased, unknown]) {
      replica.inNewLife();
      replica.applyRecords(new Map([["outbox/w", { ...entry, epoch: 0 }]]));
      expect(replica.unsent()).toEqual([]);
      expect(replica.visible(NOW).size).toBe(0);
      replica.applyRecords(new Map([["outbox/w", { ...entry, epoch: replica.device.epoch }]]));
      expect(replica.unsent()).toEqual([written("w")]);
    }
  });

  test.each([
    ["item/m", { ...item, ctime: "3" }],
    ["outbox/w", { ...entry, message: { uid: "u" } }],
    ["outbox/w", { ...entry, message: { ...written("w"), dismissal: { ranges: 5 } } }],
    ["rejected/w", { number: 1, message: written("w") }],
    ["awaited/a", "1"],
    ["owner/", { device_id: 7 }],
    ["device/", { ...device, cursor: -1 }],
  ])("that cannot be read are set aside, and the others are loaded: %s %j", (key, broken) => {
    const records = {
      "owner/": owner,
      "device/": device,
      "item/other": { ...item, msg_id: "other" },
      [key]: broken,
    };
    const replica = load(records);
    expect(idsOf(replica.state(9).items)).toStrictEqual(["other"]);
    expect([...replica.setAside]).toStrictEqual([[key, broken]]);
    expect(replica.take().get(`set_aside/${key}` as RecordKey)).toStrictEqual(broken);
    const repaired = { ...records, ...Object.fromEntries(replica.take()) };
    const kept = Object.fromEntries(Object.entries(repaired).filter(([, record]) => record !== null));
    expect(load(kept).take().size).toBe(0);
  });

  test("without that of the device, its owner is known, and the cursor is 0", () => {
    const { device: loaded, knownSince } = load({
      "owner/": { ...owner, epoch: 4, erased: true },
      "device/": "?",
    });
    expect(loaded).toStrictEqual({ ...device, epoch: 4, erased: true, cursor: 0, clock_offset: 0 });
    expect(knownSince).toBe(0);
  });

  test.each([
    ["of another device", { "device/": { ...device, device_id: "laptop" } }],
    ["of nobody", { "device/": "?", "outbox/w": entry }],
    ["of nobody, with messages", { "outbox/w": entry }],
  ])("%s are refused, and left as they are", (_, records) => {
    expect(() => load(records)).toThrow(expect.objectContaining({ code: "setup" }));
  });

  test("that the store has numbered keep their order", () => {
    const replica = newReplica();
    replica.writeAll([written("a"), written("b")], NOW);
    const changes = new Map(replica.take());
    changes.set("outbox/a", { number: 9, written: NOW, message: written("a") });
    changes.set("outbox/b", { number: 8, written: NOW, message: written("b") });
    replica.saved(changes);
    expect(replica.unsent().map(({ msg_id }) => msg_id)).toStrictEqual(["b", "a"]);
  });
});

test("more than a thousand awaited ids, or rejected messages, push out the oldest", () => {
  const replica = newReplica();
  for (let n = 0; n < 1005; n++) replica.hide(`h${n}`);
  expect([...replica.awaited.keys()].at(0)).toBe("h5");
  replica.writeAll(
    Array.from({ length: 1005 }, (_, n) => written(`m${n}`)),
    NOW,
  );
  const error = { code: "conflict", message: "no", action: "stop" } as const;
  replica.applyResults(replica.unsent().map((message) => [message, { status: "rejected", error }]));
  expect(replica.rejectedEntries().map(({ message }) => message.msg_id)).toStrictEqual(
    Array.from({ length: 1000 }, (_, n) => `m${n + 5}`),
  );
});
