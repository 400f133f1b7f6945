/**
 * A round: two browser profiles with several tabs, a Python device and a backend write for one user,
 * while networks fail, tabs are killed, nodes restart, tokens expire, the disk is full and a
 * week passes. Then the faults end, and all must agree: each device shows what the server says, and
 * what a device accepted is stored, or was reported as rejected.
 */

import { setTimeout as pause } from "node:timers/promises";
import type { Browser } from "playwright-core";
import type { Item } from "../../src/message.js";
import { Random } from "../random.js";
import { launchProfile } from "./chromium.js";
import { Link } from "./link.js";
import { PythonDevice, until, type Server } from "./processes.js";
import { Profile, call, explanation, itemsOf, untilSettled, type Tab } from "./profile.js";
import type { Site } from "./site.js";

const CATEGORIES = ["mail", "mail.work", "chat", "theme"];
const KEYS = ["theme", "draft"];
const WEEK_SECONDS = 7 * 86_400;
const MANY_ITEMS = 5_000;
const MAX_BATCH = 500;
const MAX_TABS = 3;
const REFUSALS = ["invalid", "storage_unavailable", "unavailable"];

/** What several rounds share. */
export interface Stage {
  readonly browser: Browser;
  readonly server: Server;
  readonly site: Site;
  readonly folder: string;
}

export class Round {
  readonly trace: string[] = [];
  readonly #stage: Stage;
  readonly #random: Random;
  readonly #user: string;
  readonly #fakeTime: boolean;
  readonly #fullDisk: boolean; // of the laptop, at first
  readonly #accepted = new Map<string, string>(); // by msg_id: the device
  readonly #hidden = new Map<string, Set<string>>(); // by device: what it may have hidden
  readonly #pending = new Set<Promise<void>>();
  readonly #repaired: Promise<void>;
  #endFaults: () => void = () => undefined;
  #profiles: readonly Profile[] = [];
  #python: PythonDevice | undefined;
  #pythonLink: Link | undefined;

  constructor(seed: number, stage: Stage) {
    this.#stage = stage;
    this.#random = new Random(seed);
    this.#user = `user-${seed}-${Date.now()}`;
    this.#fakeTime = this.#random.chance(0.3) && stage.server.hasClock;
    this.#fullDisk = this.#random.chance(0.3);
    this.#repaired = new Promise((resolve) => (this.#endFaults = resolve));
  }

  /** Plays it. Rejects if anything is wrong in the end. */
  async play(steps: number): Promise<void> {
    try {
      if (this.#random.chance(0.1)) await this.#inject(MANY_ITEMS);
      await this.#begin();
      for (let step = 0; step < steps; step++) await this.#step();
      await this.#repair();
      await this.#agree();
    } catch (error) {
      await this.#explain();
      throw error;
    } finally {
      await Promise.all([this.#python?.close(), ...this.#profiles.map((profile) => profile.close())]);
      this.#pythonLink?.close();
    }
  }

  async #begin(): Promise<void> {
    const { browser, server, site, folder } = this.#stage;
    const contexts = await Promise.all([
      this.#fullDisk ? launchProfile(`${folder}/${this.#user}`) : browser.newContext(),
      browser.newContext(),
    ]);
    this.#profiles = await Promise.all(
      contexts.map((context, index) =>
        Profile.open(context, server, site, this.#user, ["laptop", "phone"][index] as string),
      ),
    );
    if (this.#fullDisk) await this.#profiles[0]?.fillDisk(true);
    if (this.#fakeTime) await Promise.all(contexts.map((context) => context.clock.install()));
    for (const [index, profile] of this.#profiles.entries()) {
      this.#hidden.set(profile.deviceId, new Set());
      for (let tab = 0; tab < MAX_TABS - 2 * index; tab++) await profile.openTab();
    }
    const file = `${folder}/${this.#user}.db`;
    const token = server.token(this.#user, 10 * 365 * 86_400);
    this.#pythonLink = await Link.to(server.ports);
    this.#python = new PythonDevice(this.#pythonLink.url, token, "python", file);
  }

  // Steps

  async #step(): Promise<void> {
    const profile = this.#random.of(this.#profiles);
    const step = this.#random.weighted({
      write: 12,
      burst: 2,
      python: 3,
      backend: 4,
      openTab: 2,
      endTab: 2,
      reload: 2,
      freeze: 1,
      network: 2,
      offline: 2,
      token: 2,
      node: 0.5,
      disk: this.#fullDisk ? 1 : 0,
      week: this.#fakeTime ? 1 : 0,
    });
    this.#record(profile.deviceId, step);
    switch (step) {
      case "write":
        return this.#write(profile, this.#awakeTab(profile));
      case "burst":
        return this.#burst(profile);
      case "python":
        return this.#writeInPython();
      case "backend":
        return this.#inject(1 + this.#random.below(3));
      case "openTab":
        if (profile.tabs.length < MAX_TABS) await profile.openTab();
        return;
      case "endTab":
        return this.#endTab(profile);
      case "reload":
        return this.#reload(profile, this.#awakeTab(profile));
      case "freeze":
        return this.#freeze(profile);
      case "network":
        return profile.link.break();
      case "offline":
        return profile.setOnline(this.#random.chance(0.5));
      case "token":
        return this.#changeToken(profile);
      case "node":
        return this.#restartNode();
      case "disk":
        return this.#profiles[0]?.fillDisk(false);
      case "week":
        return this.#passTime(this.#random.of([3600, WEEK_SECONDS]));
    }
  }

  /** Writes something in a tab, and goes on before that is saved. */
  async #write(profile: Profile, tab: Tab | undefined): Promise<void> {
    if (tab === undefined) return;
    const [method, ...args] = await this.#randomWrite(tab);
    if (method === "hide") this.#hidden.get(profile.deviceId)?.add(args[0] as string);
    const write = this.#carryOut(profile, tab, method as string, args);
    this.#pending.add(write);
    void write.finally(() => this.#pending.delete(write)).catch(() => undefined);
    if (this.#random.chance(0.5)) await write;
  }

  async #carryOut(
    { deviceId }: Profile,
    tab: Tab,
    method: string,
    args: readonly unknown[],
  ): Promise<void> {
    const outcome = await call(tab, method, ...args);
    switch (outcome.kind) {
      case "done":
        if (outcome.durable && typeof outcome.value === "string") {
          this.#accepted.set(outcome.value, deviceId);
        }
        return this.#record(deviceId, `${method} ${String(outcome.value)}`);
      case "refused":
        if (!REFUSALS.includes(outcome.code)) {
          throw new Error(`${deviceId} cannot ${method}: ${outcome.code} ${outcome.message}`);
        }
        return this.#record(deviceId, `cannot ${method}: ${outcome.message}`);
      case "unknown":
        return this.#record(deviceId, `ended during ${method}`);
    }
  }

  async #randomWrite(tab: Tab): Promise<readonly unknown[]> {
    const items = await itemsOf(tab).catch(() => []);
    const id = items.length === 0 ? this.#random.id() : this.#random.of(items).msg_id;
    const category = this.#random.of(CATEGORIES);
    const lifetime = this.#random.of([
      {},
      {},
      { expires: "1h" },
      { expires: "30d" },
      { starts: "3d", expires: "30d" },
      { thisDevice: true },
    ]);
    switch (
      this.#random.weighted({ put: 4, create: 4, dismiss: 4, category: 1, key: 1, snooze: 1, hide: 1 })
    ) {
      case "put":
        return ["put", category, this.#random.number(), { key: this.#random.of(KEYS), ...lifetime }];
      case "create":
        return ["create", category, this.#random.number(), lifetime];
      case "dismiss":
        return ["dismiss", id];
      case "category":
        return ["dismissCategory", category, { prefix: this.#random.chance(0.5) }];
      case "key":
        return ["dismissKey", this.#random.of(KEYS)];
      case "snooze":
        return ["snooze", id, "2d"];
      case "hide":
        return ["hide", id];
    }
  }

  /** Many writes, in the middle of which the tab ends, or begins again. */
  async #burst(profile: Profile): Promise<void> {
    const tab = this.#awakeTab(profile);
    if (tab === undefined) return;
    const writes = Array.from({ length: 20 }, (_, index) =>
      this.#carryOut(profile, tab, "create", ["mail", index]),
    );
    await pause(this.#random.below(30));
    if (this.#random.chance(0.5)) await profile.reload(tab);
    else await profile.closeTab(tab, this.#random.of(["close", "crash"]));
    await Promise.all(writes);
  }

  async #writeInPython(): Promise<void> {
    const key = this.#random.of(KEYS);
    const id: unknown = await (this.#random.chance(0.7)
      ? this.#python?.call("put", ["theme", this.#random.number()], { key })
      : this.#python?.call("dismiss_key", [key]));
    if (typeof id !== "string") throw new Error(`the Python device cannot write: ${JSON.stringify(id)}`);
    this.#accepted.set(id, "python");
  }

  async #inject(count: number): Promise<void> {
    for (let left = count; left > 0; left -= MAX_BATCH) {
      const messages = Array.from({ length: Math.min(left, MAX_BATCH) }, (_, index) => ({
        uid: this.#user,
        msg_id: this.#random.id(),
        creation: { category: this.#random.of(CATEGORIES), body: index },
      }));
      await this.#stage.server.request("messages", { messages });
      for (const { msg_id } of messages) this.#accepted.set(msg_id, "backend");
    }
  }

  async #endTab(profile: Profile): Promise<void> {
    const tab = this.#random.of([...profile.tabs, undefined]);
    if (tab !== undefined) await profile.closeTab(tab, this.#random.of(["close", "crash"]));
  }

  async #reload(profile: Profile, tab: Tab | undefined): Promise<void> {
    if (tab !== undefined) await profile.reload(tab);
  }

  async #freeze(profile: Profile): Promise<void> {
    const tab = this.#random.of([...profile.tabs, undefined]);
    if (tab !== undefined) await profile.freeze(tab, !tab.frozen);
  }

  /** What the app gives as tokens from now on. */
  #changeToken(profile: Profile): void {
    const { server } = this.#stage;
    profile.token = this.#random.of([
      () => Promise.resolve(server.token(this.#user, 3600)),
      () => Promise.resolve(server.token(this.#user, 1 + this.#random.number())),
      () => Promise.resolve(server.token(this.#user, -1)),
      () => Promise.reject(new Error("no token")),
      () => this.#repaired.then(() => server.token(this.#user, 3600)),
    ]);
    profile.link.break();
  }

  async #restartNode(): Promise<void> {
    const node = this.#random.of(this.#stage.server.nodes);
    await node.stop(this.#random.chance(0.7) ? "SIGKILL" : undefined);
    await node.start();
  }

  async #passTime(seconds: number): Promise<void> {
    this.#stage.server.advance(seconds);
    await this.#wake();
    this.#pythonLink?.break(); // its own clock stays behind: it hears the time when it connects
    await Promise.all(
      this.#profiles.map(({ context }) => context.clock.fastForward(seconds * 1000)),
    );
  }

  async #wake(): Promise<void> {
    for (const profile of this.#profiles) {
      for (const tab of profile.tabs.filter(({ frozen }) => frozen)) await profile.freeze(tab, false);
    }
  }

  #awakeTab({ tabs }: Profile): Tab | undefined {
    const awake = tabs.filter(({ frozen }) => !frozen);
    return awake.length === 0 ? undefined : this.#random.of(awake);
  }

  // The end

  /** Ends all faults. */
  async #repair(): Promise<void> {
    const { server } = this.#stage;
    this.#endFaults();
    await this.#wake();
    for (const profile of this.#profiles) {
      profile.token = () => Promise.resolve(server.token(this.#user, 3600));
      if (profile.tabs.length === 0) await profile.openTab();
      await profile.setOnline(true);
    }
    if (this.#fullDisk) await this.#openStore();
    await Promise.all(this.#pending);
    await this.#python?.call("reconnect");
    this.#record("round", "ends the faults");
  }

  /** Tabs that could not open the store go on without it: what other tabs have saved waits for one
   * that can. */
  async #openStore(): Promise<void> {
    const [laptop] = this.#profiles;
    await laptop?.fillDisk(false);
    await laptop?.openTab();
  }

  async #agree(): Promise<void> {
    await Promise.all(this.#profiles.flatMap(({ tabs }) => tabs.map(untilSettled)));
    await this.#python?.call("flush");
    await until("all agree", async () => {
      const problem = await this.#disagreement();
      if (problem !== undefined) throw new Error(problem);
      return true;
    });
    const problems = this.#profiles.flatMap((profile) => profile.problems);
    if (problems.length > 0) throw new Error(`problems in a page: ${problems.join("\n")}`);
  }

  /** Records what each tab is like, and what went wrong in it. */
  async #explain(): Promise<void> {
    for (const { deviceId, tabs, problems } of this.#profiles) {
      for (const tab of tabs) this.#record(deviceId, await explanation(tab));
      for (const problem of problems) this.#record(deviceId, problem);
    }
  }

  /** What is wrong; undefined if all agree. */
  async #disagreement(): Promise<string | undefined> {
    for (const profile of this.#profiles) {
      const hidden = this.#hidden.get(profile.deviceId) ?? new Set();
      const expected = texts(await this.#stored(profile.deviceId), hidden);
      for (const [index, tab] of profile.tabs.entries()) {
        const shown = texts(await itemsOf(tab), hidden);
        const problem = difference(shown, expected);
        if (problem !== undefined) return `${profile.deviceId}, tab ${index}: ${problem}`;
      }
    }
    const { items } = (await this.#python?.call("state")) as { items: readonly Item[] };
    const problem = difference(texts(items), texts(await this.#stored("python")));
    return problem === undefined ? this.#lost() : `python: ${problem}`;
  }

  async #stored(deviceId: string): Promise<readonly Item[]> {
    const path = `users/${this.#user}/state?device_id=${deviceId}`;
    const [state] = await this.#stage.server.request(path);
    return state.items;
  }

  /** Which accepted write is neither stored nor rejected. */
  async #lost(): Promise<string | undefined> {
    const lines = await this.#stage.server.request(`users/${this.#user}/export`);
    const stored = new Set(lines.map(({ message }) => message?.msg_id));
    const lost = [...this.#accepted].filter(([id]) => !stored.has(id));
    return lost.length === 0 ? undefined : `lost: ${JSON.stringify(lost.slice(0, 10))}`;
  }

  #record(who: string, what: string): void {
    this.trace.push(`${who.padEnd(8)} ${what}`);
  }
}

/** Items as texts that can be compared, without those with these ids. */
function texts(items: readonly Item[], without: ReadonlySet<string> = new Set()): readonly string[] {
  const compared = items.filter(({ msg_id }) => !without.has(msg_id));
  return compared.map((item) => JSON.stringify(Object.entries(item).sort())).sort();
}

function difference(shown: readonly string[], expected: readonly string[]): string | undefined {
  const [isShown, isExpected] = [new Set(shown), new Set(expected)];
  const missing = expected.filter((text) => !isShown.has(text));
  const extra = shown.filter((text) => !isExpected.has(text));
  if (missing.length === 0 && extra.length === 0) return undefined;
  const [some, others] = [missing, extra].map((list) => list.slice(0, 5).join("\n  "));
  return `lacks ${missing.length} items:\n  ${some}\nand has ${extra.length} too many:\n  ${others}`;
}
