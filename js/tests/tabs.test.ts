import fc from "fast-check";
import { describe, expect, test, vi } from "vitest";
import type { Environment } from "../src/environment.js";
import { FakeBrowser } from "./fakes/browser.js";
import { Page } from "./fakes/page.js";

/** Three tabs of one browser; the first leads. */
async function threeTabs(parts?: Partial<Environment>, choose?: (count: number) => number) {
  const browser = new FakeBrowser(choose);
  const server = new Set<string>();
  const open = () => new Page(browser.open(parts), server).open();
  const [a, b, c] = [await open(), await open(), await open()];
  await browser.settle();
  return { browser, server, a, b, c, open };
}

const leaders = (...pages: readonly Page[]) => pages.filter((page) => page.isLeader && page.tab.isAwake);

/** What is written in one tab is delivered, and shown in all. */
async function expectWorks(browser: FakeBrowser, ...pages: readonly Page[]) {
  for (const [index, page] of pages.entries()) {
    const note = `works ${index} ${browser.time}`;
    const written = page.write(note);
    await browser.settle();
    await written;
    await browser.advance(2_000);
    for (const other of pages) expect([...other.records.keys()]).toContain(`item/${note}`);
  }
  const [first, ...others] = pages.map((page) => Object.fromEntries(page.records));
  for (const other of others) expect(other).toEqual(first);
}

describe("one tab leads", () => {
  test("and the others hear what each of them writes, at once", async () => {
    const { browser, a, b, c, server } = await threeTabs();
    expect([a.log, b.log, c.log]).toEqual([["reloads", "leads 1"], ["reloads"], ["reloads"]]);
    const written = b.write("hello");
    await browser.settle();
    await written;
    expect(server).toEqual(new Set(["hello"]));
    for (const page of [a, b, c]) {
      expect(Object.fromEntries(page.records)).toEqual({ "device/": { cursor: 0 }, "item/hello": { note: "hello" } });
    }
    expect(browser.time).toBe(0);
  });

  test("and each hears what another says", async () => {
    const { browser, a, b, c } = await threeTabs();
    b.tabs.say("hello");
    await browser.settle();
    expect([a, b, c].map((page) => page.log.includes("hello"))).toEqual([true, false, true]);
  });

  test("until it is closed: then the next one leads at once", async () => {
    const { browser, a, b, c } = await threeTabs();
    a.tab.close();
    await browser.settle();
    expect(browser.time).toBe(0);
    expect(b.log).toEqual(["reloads", "leads 2"]);
    await expectWorks(browser, b, c);
  });

  test("until its client is closed, though its page stays", async () => {
    const { browser, a, b, c } = await threeTabs();
    a.tabs.close();
    await browser.settle();
    expect(a.log.at(-1)).toBe("follows");
    expect(leaders(a, b, c)).toEqual([b]);
    await expectWorks(browser, b, c);
  });

  test("until its process ends", async () => {
    const { browser, a, b, c } = await threeTabs();
    a.tab.kill();
    await browser.settle();
    expect(leaders(b, c)).toEqual([b]);
    await expectWorks(browser, b, c);
  });

  test("until it has been silent for five seconds: then another one takes the lock", async () => {
    const { browser, a, b, c } = await threeTabs();
    a.tab.hang();
    await browser.advance(4_900);
    expect(leaders(b, c)).toEqual([]);
    await browser.advance(2_000);
    expect(leaders(b, c)).toHaveLength(1);
    await expectWorks(browser, b, c);
  });

  test("and keeps the lead for as long as it is heard", async () => {
    const { browser, a, b, c } = await threeTabs();
    await browser.advance(600_000);
    expect([a, b, c].flatMap((page) => page.log)).toEqual(["reloads", "leads 1", "reloads", "reloads"]);
  });

  test("and nobody reads the store again who has missed nothing", async () => {
    const { browser, a } = await threeTabs();
    const written = a.write("heard");
    await browser.advance(2_000);
    await written;
    const transact = vi.spyOn(browser.database, "transact");
    await browser.advance(60_000);
    expect(transact).not.toHaveBeenCalled();
  });

  test("and a tab that nobody sees does not rob it", async () => {
    const { browser, a, b, c } = await threeTabs();
    a.tab.hang();
    b.tab.isVisible = c.tab.isVisible = false;
    await browser.advance(60_000);
    expect(leaders(b, c)).toEqual([]);
    c.tab.isVisible = true;
    await browser.advance(1_000);
    expect(leaders(b, c)).toEqual([c]);
  });

  test("and a tab that was asleep itself does not take its own sleep for silence", async () => {
    const { browser, a, b, c } = await threeTabs();
    b.tab.hang();
    await browser.advance(60_000);
    b.tab.goOn();
    await browser.advance(10_000);
    expect(leaders(a, b, c)).toEqual([a]);
    await expectWorks(browser, a, b, c);
  });
});

describe("a leader that was frozen", () => {
  test("cannot save anything when it wakes up: another term has begun", async () => {
    const { browser, a, b, c, server } = await threeTabs();
    a.tab.hang();
    await browser.advance(8_000);
    const [leader] = leaders(b, c);
    a.tab.goOn();
    expect(a.isLeader).toBe(true); // it does not know yet
    const saving = expect(a.tabs.save(new Map([["device/", { cursor: 99 }]]), a.term)).rejects.toMatchObject({ code: "not-leader" });
    await browser.settle();
    await saving;
    expect(a.isLeader).toBe(false);
    expect((await browser.database.transact(undefined, (stored) => stored)).has("device/")).toBe(false);
    expect(leaders(a, b, c)).toEqual([leader]);
    expect(server.size).toBe(0);
    await expectWorks(browser, a, b, c);
  });

  test("hears that it was robbed, and follows", async () => {
    const { browser, a, b, c } = await threeTabs();
    a.tab.hang();
    await browser.advance(8_000);
    await expectWorks(browser, b, c);
    a.tab.goOn();
    await browser.settle();
    expect(a.log).toEqual(["reloads", "leads 1", "follows"]);
    await browser.advance(2_000);
    await expectWorks(browser, a, b, c);
  });

  test("reads again what others have saved since, also if they do not say so", async () => {
    const { browser, a, b, c } = await threeTabs();
    c.tab.close();
    a.tab.hang();
    browser.broadcastsToLose = Infinity;
    await browser.advance(8_000);
    const written = b.write("saved since");
    await browser.settle();
    await written;
    a.tab.goOn();
    const saving = expect(a.tabs.save(new Map(), a.term)).rejects.toMatchObject({ code: "not-leader" });
    await browser.advance(1_000);
    await saving;
    expect(Object.fromEntries(a.records)).toEqual(Object.fromEntries(b.records));
  });

  test("leads again when all others have gone", async () => {
    const { browser, a, b, c } = await threeTabs();
    a.tab.hang();
    await browser.advance(8_000);
    a.tab.goOn();
    b.tab.close();
    c.tab.kill();
    await browser.advance(2_000);
    expect(leaders(a)).toEqual([a]);
    await expectWorks(browser, a);
  });
});

describe.each([
  ["goes into the cache for the way back", "navigateAway", "navigateBack"],
  ["is frozen by the browser", "freeze", "resume"],
] as const)("a page that %s", (_, leave, comeBack) => {
  test("gives up the lead before, and follows when it is back", async () => {
    const { browser, a, b, c } = await threeTabs();
    a.tab[leave]();
    expect(a.log.at(-1)).toBe("follows");
    await browser.settle();
    expect(leaders(b, c)).toEqual([b]);
    expect(browser.time).toBe(0);
    await expectWorks(browser, b, c);
    a.tab[comeBack]();
    await browser.settle();
    expect(Object.fromEntries(a.records)).toEqual(Object.fromEntries(b.records));
    expect(leaders(a, b, c)).toEqual([b]);
    await expectWorks(browser, a, b, c);
  });

  test("is told nothing while it is there, and has missed nothing afterwards", async () => {
    const { browser, a, b, c } = await threeTabs();
    c.tab[leave]();
    await expectWorks(browser, a, b);
    expect(c.records.size).toBe(0);
    c.tab[comeBack]();
    await browser.settle();
    expect(Object.fromEntries(c.records)).toEqual(Object.fromEntries(a.records));
  });

  test("leads again if it is the only one", async () => {
    const { browser, a, b, c } = await threeTabs();
    b.tab.close();
    c.tab.close();
    a.tab[leave]();
    await browser.advance(60_000);
    a.tab[comeBack]();
    await browser.settle();
    expect(a.log).toEqual(["reloads", "leads 1", "follows", "leads 2"]);
    await expectWorks(browser, a);
  });
});

describe("two tabs that believe to lead at once", () => {
  test("do not both save: the store knows the later term", async () => {
    const { browser, a, b, c } = await threeTabs();
    a.tab.hang();
    await browser.advance(8_000);
    const [leader] = leaders(b, c);
    a.tab.goOn();
    const savings = [a, leader!].map((page) => page.tabs.save(new Map([["device/", { by: page.tab.id }]]), page.term));
    const settled = Promise.allSettled(savings);
    await browser.settle();
    const [byOld, byNew] = await settled;
    expect(byOld).toMatchObject({ status: "rejected", reason: { code: "not-leader" } });
    expect(byNew).toMatchObject({ status: "fulfilled" });
    await browser.advance(2_000);
    const [follower] = [b, c].filter((page) => page !== leader);
    expect(follower!.records.get("device/")).toEqual({ by: leader!.tab.id });
  });

  test("that rob each other agree in the end", async () => {
    const { browser, a, b, c } = await threeTabs();
    a.tab.hang();
    await browser.advance(4_500);
    b.tab.hang();
    await browser.advance(3_000);
    a.tab.goOn();
    b.tab.goOn();
    await browser.advance(10_000);
    expect(leaders(a, b, c)).toHaveLength(1);
    await expectWorks(browser, a, b, c);
  });
});

describe("a broadcast that gets lost", () => {
  test("from a follower to all: the leader hears in a second that something is missing", async () => {
    const { browser, a, b, c, server } = await threeTabs();
    browser.broadcastsToLose = 2;
    const written = b.write("lost");
    await browser.settle();
    await written;
    expect(server.size).toBe(0);
    await browser.advance(2_000);
    expect(server).toEqual(new Set(["lost"]));
    await browser.advance(1_000);
    for (const page of [a, b, c]) expect([...page.records.keys()]).toContain("item/lost");
  });

  test("from the leader: the others hear in a second that something is missing", async () => {
    const { browser, a, b, c } = await threeTabs();
    browser.broadcastsToLose = 4; // what is written, and that it was delivered
    const written = a.write("lost");
    await browser.settle();
    await written;
    expect(b.records.size).toBe(0);
    await browser.advance(2_000);
    for (const page of [b, c]) {
      expect(page.log.at(-1)).toBe("reloads");
      expect(Object.fromEntries(page.records)).toEqual(Object.fromEntries(a.records));
    }
  });
});

test("a reading that fails is tried again in a second, though nobody says again what was missed", async () => {
  const { browser, a, c } = await threeTabs();
  c.tab.navigateAway();
  void a.write("missed");
  await browser.settle();
  browser.broadcastsToLose = Infinity;
  c.tab.transactionsToFail = 1;
  c.tab.navigateBack();
  await browser.settle();
  expect(c.records.size).toBe(0);
  await browser.advance(1_000);
  expect(Object.fromEntries(c.records)).toEqual(Object.fromEntries(a.records));
});

test("what a tab saved before it could say so is found when the leader saves the next time", async () => {
  const { browser, a, b, server } = await threeTabs();
  void b.write("last words");
  await browser.step(); // its transaction
  b.tab.kill();
  await browser.advance(2_000);
  const written = a.write("next");
  await browser.advance(2_000);
  await written;
  expect(server).toEqual(new Set(["last words", "next"]));
});

test("what arrives late does not undo what was saved later", async () => {
  const { browser, a, b } = await threeTabs({}, (count) => count - 1); // the latest first
  const save = async (page: Page, value: number) => {
    const news = await page.tabs.save(new Map([["hidden/x", value]]));
    page.records.set("hidden/x", news.get("hidden/x"));
  };
  a.tab.hang(); // the broadcast of 1 has to wait
  const first = save(b, 1);
  await browser.settle();
  await first;
  a.tab.goOn();
  const second = save(a, 2);
  await browser.settle();
  await second;
  expect([a, b].map((page) => page.records.get("hidden/x"))).toEqual([2, 2]);
});

describe("a tab is alone", () => {
  test.each([
    ["locks, as on plain http", { locks: undefined }],
    ["channels", { BroadcastChannel: undefined }],
  ])("without %s: each leads, and what each writes is delivered and kept", async (_, parts) => {
    const { browser, a, b, c, server } = await threeTabs(parts);
    expect(leaders(a, b, c)).toEqual([a, b, c]);
    const written = [a, b, c].map((page, index) => page.write(`note ${index}`));
    await browser.advance(10_000);
    await Promise.all(written);
    expect(server).toEqual(new Set(["note 0", "note 1", "note 2"]));
    expect([...a.records.keys()]).toEqual(expect.arrayContaining(["item/note 0"]));
    expect([...a.records.keys()]).not.toContain("item/note 1");
    const restarted = await new Page(browser.open(parts), server).open();
    await browser.settle();
    expect([...restarted.records.keys()].filter((key) => key.startsWith("outbox/"))).toEqual([]);
    for (const note of server) expect([...restarted.records.keys()]).toContain(`item/${note}`);
  });

  test("and is not woken each second", async () => {
    const { browser, a } = await threeTabs({ locks: undefined });
    await browser.advance(2_000);
    let timers = 0;
    const { environment } = a.tab;
    expect(environment.BroadcastChannel).toBeDefined();
    const schedule = browser.schedule.bind(browser);
    browser.schedule = (timer) => (timers++, schedule(timer));
    await browser.advance(60_000);
    expect(timers).toBe(0);
  });
});

test("a worker, which has no page and no events, is a tab like the others", async () => {
  const worker = { listen: () => () => {}, isVisible: () => true };
  const { browser, a, b, server } = await threeTabs();
  const c = await new Page(browser.open(worker), server).open();
  await expectWorks(browser, a, b, c);
  a.tab.hang();
  b.tab.isVisible = false;
  browser.tabs[2]!.close();
  await browser.advance(8_000);
  expect(leaders(a, b, c)).toEqual([c]);
  await expectWorks(browser, b, c);
});

test("a tab whose store does not answer lets another one lead", async () => {
  const { browser, a, b, c } = await threeTabs();
  b.tab.breakStore();
  a.tab.close();
  await browser.advance(13_000);
  expect(b.isLeader).toBe(false);
  expect(leaders(b, c)).toEqual([c]);
});

test("one of the tabs leads, and goes on leading, however slow their store is", async () => {
  const seconds = fc.double({ min: 0, max: 9.5, noNaN: true });
  await fc.assert(
    fc.asyncProperty(fc.array(seconds, { minLength: 1, maxLength: 3 }), async (slowness) => {
      const browser = new FakeBrowser();
      const pages = slowness.map((seconds) => {
        const tab = browser.open();
        tab.storeMs = 1000 * seconds;
        return new Page(tab, new Set());
      });
      for (const page of pages) void page.tabs.open();
      await browser.advance(60_000);
      const [leader, ...others] = leaders(...pages);
      expect([leader?.isLeader, others]).toEqual([true, []]);
      const { term } = leader!;
      await browser.advance(60_000);
      expect(leader!.term).toBe(term);
    }),
    { includeErrorInReport: true },
  );
});

describe("a tab has missed nothing, however long its store takes", () => {
  /** At which part of the time that the store takes. */
  const share = fc.double({ min: 0, max: 1, noNaN: true });
  const storeMs = fc.integer({ min: 1, max: 9_000 });

  test("when it is open: what others save and say meanwhile, it knows then", async () => {
    const happenings = fc.array(fc.record({ share, by: fc.nat(1), what: fc.constantFrom("write", "say") }), { maxLength: 6 });
    await fc.assert(
      fc.asyncProperty(storeMs, happenings, async (storeMs, happenings) => {
        const { browser, server, a, b } = await threeTabs();
        const page = new Page(browser.open(), server);
        page.tab.storeMs = storeMs;
        void page.tabs.open();
        for (const [index, { share, by, what }] of happenings.sort((one, two) => one.share - two.share).entries()) {
          await browser.advanceTo(share * storeMs);
          const other = [a, b][by]!;
          if (what === "say") other.tabs.say(`said ${index}`);
          else void other.write(`written ${index}`);
        }
        await browser.advanceTo(storeMs);
        const said = happenings.flatMap(({ what }, index) => (what === "say" ? [`said ${index}`] : []));
        expect(page.log).toEqual(["reloads", ...said]);
        expect(Object.fromEntries(page.records)).toEqual(Object.fromEntries(a.records));
      }),
      { includeErrorInReport: true },
    );
  });

  test("though it sleeps while it reads, at first or again: then it reads once more, without being told", async () => {
    const sleep = fc.constantFrom(["freeze", "resume"] as const, ["navigateAway", "navigateBack"] as const);
    await fc.assert(
      fc.asyncProperty(storeMs, share, sleep, fc.boolean(), async (storeMs, share, [leave, comeBack], isFirst) => {
        const { browser, server, a } = await threeTabs();
        const page = new Page(browser.open(), server);
        if (!isFirst) await page.open();
        page.tab.storeMs = storeMs;
        page.tab.freeze();
        page.tab.resume(); // reads again, if it is open
        if (isFirst) void page.tabs.open();
        await browser.advance(share * storeMs);
        page.tab[leave]();
        void a.write("in its sleep");
        await browser.settle();
        browser.broadcastsToLose = Infinity;
        page.tab[comeBack]();
        await browser.advance(2 * storeMs + 1_000);
        expect(Object.fromEntries(page.records)).toEqual(Object.fromEntries(a.records));
      }),
      { includeErrorInReport: true },
    );
  });
});

test.each(Array.from({ length: 12 }, (_, steps) => steps))(
  "a tab that is closed %i steps after it began to open neither leads nor hears, and holds no lock",
  async (steps) => {
    const browser = new FakeBrowser();
    const page = new Page(browser.open(), new Set());
    const opened = page.tabs.open();
    for (let step = 0; step < steps; step++) await browser.step();
    page.tabs.close();
    await browser.settle();
    await opened;
    expect(page.isLeader).toBe(false);
    expect(browser.channels).toEqual([]);
    const next = await new Page(browser.open(), new Set()).open();
    expect(next.isLeader).toBe(true);
    expect(browser.time).toBe(0);
  },
);

describe("whatever happens to three tabs", () => {
  /** What can happen to a tab. A tab that is gone is opened again. */
  const happenings = {
    write: fc.constant("write"),
    leave: fc.constantFrom("hang", "freeze", "navigateAway", "close", "kill"),
    comeBack: fc.constant("comeBack"),
    see: fc.constantFrom("show", "hide"),
    lose: fc.constant("lose"),
    slow: fc.constant("slow"),
    wait: fc.constantFrom("wait", "step"),
  } as const;
  const happening = fc.record({
    tab: fc.nat(2),
    what: fc.oneof({ weight: 4, arbitrary: happenings.write }, happenings.leave, happenings.comeBack, happenings.see, happenings.lose, happenings.slow, { weight: 4, arbitrary: happenings.wait }),
    amount: fc.nat(20),
  });

  /** Numbers from a seed, so that a failure can be repeated. */
  const chooser = (seed: number) => (count: number) => {
    seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
    return Math.floor((seed / 2 ** 32) * count);
  };

  class Schedule {
    readonly browser: FakeBrowser;
    readonly server = new Set<string>();
    readonly saved = new Set<string>();
    readonly slots: { page: Page; comeBack: () => void }[];
    private _notes = 0;

    constructor(seed: number) {
      this.browser = new FakeBrowser(chooser(seed));
      this.slots = [0, 1, 2].map(() => this.open());
    }

    open() {
      const page = new Page(this.browser.open(), this.server);
      void page.tabs.open();
      return { page, comeBack: () => {} };
    }

    async happen({ tab, what, amount }: { tab: number; what: string; amount: number }) {
      const slot = this.slots[tab]!;
      const { page } = slot;
      switch (what) {
        case "write":
          return this.write(page);
        case "hang":
        case "freeze":
        case "navigateAway":
          if (!page.tab.isAwake) return;
          page.tab[what]();
          slot.comeBack = () => ({ hang: () => page.tab.goOn(), freeze: () => page.tab.resume(), navigateAway: () => page.tab.navigateBack() })[what]();
          return;
        case "close":
        case "kill":
          if (!page.tab.isAwake) return;
          page.tab[what]();
          slot.comeBack = () => (this.slots[tab] = this.open());
          return;
        case "comeBack":
          if (!page.tab.isAwake) slot.comeBack();
          return;
        case "show":
        case "hide":
          page.tab.isVisible = what === "show";
          return;
        case "lose":
          this.browser.broadcastsToLose += amount % 3;
          return;
        case "slow":
          page.tab.storeMs = amount * 450;
          return;
        case "wait":
          return this.browser.advance(amount * 500);
        default:
          for (let count = 0; count < amount; count++) await this.browser.step();
      }
    }

    write(page: Page) {
      if (!page.tab.isAwake || page.log.length === 0) return; // it does not show anything yet
      const note = `${this._notes++}`;
      void page.write(note).then(() => this.saved.add(note));
    }

    /** All come back, and are seen; then time passes, more than a slow store needs. */
    async end() {
      this.browser.broadcastsToLose = 0;
      for (const tab of [0, 1, 2]) {
        await this.happen({ tab, what: "comeBack", amount: 0 });
        await this.happen({ tab, what: "show", amount: 0 });
      }
      await this.browser.advance(180_000);
    }
  }

  test("nothing saved is lost, one leads, and all hold what the store holds", async () => {
    await fc.assert(
      fc.asyncProperty(fc.integer(), fc.array(happening, { maxLength: 40 }), async (seed, events) => {
        const schedule = new Schedule(seed);
        for (const event of events) await schedule.happen(event);
        await schedule.end();
        const { browser, server, saved, slots } = schedule;
        const pages = slots.map(({ page }) => page);
        const stored = await browser.database.transact(undefined, (records) => new Map(records));
        stored.delete("");
        for (const note of saved) expect(server).toContain(note);
        for (const page of pages) expect(Object.fromEntries(page.records)).toEqual(Object.fromEntries(stored));
        expect([...stored.keys()].filter((key) => key.startsWith("outbox/"))).toEqual([]);
        expect(leaders(...pages)).toHaveLength(1);
        expect(new Set(pages.flatMap(({ refusals }) => refusals))).toEqual(
          new Set(pages.some(({ refusals }) => refusals.length) ? ["not-leader"] : []),
        );
      }),
      { numRuns: 200, includeErrorInReport: true },
    );
  }, 60_000);
});
