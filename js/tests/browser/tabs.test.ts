import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from "vitest";
import { launchProfile } from "./chromium.js";
import type { Link } from "./link.js";
import { Server, until } from "./processes.js";
import { call, itemsOf, Profile, statusOf, untilSettled, type Place, type Tab } from "./profile.js";
import { Site } from "./site.js";

let site: Site;
let server: Server;
let folder: string;
let profile: Profile;
let users = 0;

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), "gregor-"));
  site = await Site.serve("device-page.ts");
  server = await Server.start(folder, site.origin);
});
afterAll(async () => {
  await server.stop();
  site.close();
  rmSync(folder, { recursive: true });
});
/** The browser begins, with the profile of this test. */
async function begin(link?: Link): Promise<void> {
  const context = await launchProfile(`${folder}/${users}`);
  profile = await Profile.open(context, server, site, `user-${users}`, "laptop", link);
}

beforeEach(async () => {
  users++;
  await begin();
});
afterEach(async () => {
  await profile.close();
  expect(profile.problems).toEqual([]);
});

const connections = async (): Promise<number> => {
  const metrics = await (await fetch(`${server.adminUrl}/metrics`)).text();
  return Number(/^gregor_connections\S* (\d+)/m.exec(metrics)?.[1]);
};

/** Opens two tabs; the first one leads, and is connected. */
async function twoTabs(): Promise<readonly [Tab, Tab]> {
  const leader = await profile.openTab();
  await untilSettled(leader);
  const follower = await profile.openTab();
  await untilSettled(follower);
  return [leader, follower];
}

const shows = (place: Place, category: string): Promise<void> =>
  until(`the tab shows ${category}`, async () =>
    (await itemsOf(place)).some((item) => item.category === category),
  );

test("a tab shows what another tab writes, and both are one connection", async () => {
  const [leader, follower] = await twoTabs();
  await call(follower, "put", "by.follower", 1);
  await call(leader, "put", "by.leader", 1);
  await Promise.all([shows(leader, "by.follower"), shows(follower, "by.leader")]);
  await Promise.all([untilSettled(leader), untilSettled(follower)]);
  expect(await connections()).toBe(1);
});

test("a page and a worker share one connection, which the worker takes over", async () => {
  const page = await profile.openTab();
  await untilSettled(page);
  const worker = await profile.startWorker(page);
  await untilSettled(worker);
  await call(worker, "put", "by.worker", 1);
  await call(page, "put", "by.page", 1);
  await Promise.all([shows(page, "by.worker"), shows(worker, "by.page")]);
  await Promise.all([untilSettled(page), untilSettled(worker)]);
  expect(await itemsOf(worker)).toEqual(await itemsOf(page));
  expect(await connections()).toBe(1);

  await call(page, "close");
  await call(worker, "put", "afterwards", 1);
  await untilSettled(worker);
  const [{ items }] = await server.request(`users/user-${users}/state`);
  expect(items).toEqual(await itemsOf(worker));
  expect(await connections()).toBe(1);
});

test.each(["close", "crash"] as const)("a follower leads after the leader's tab: %s", async (how) => {
  const [leader, follower] = await twoTabs();
  await profile.closeTab(leader, how);
  await call(follower, "put", "afterwards", 1);
  await untilSettled(follower);
  expect((await server.request(`users/user-${users}/state`))[0].items).toMatchObject([
    { category: "afterwards" },
  ]);
});

test("a follower replaces a leader that is frozen, which follows when it wakes up", async () => {
  const [leader, follower] = await twoTabs();
  await profile.freeze(leader, true);
  profile.link.break();
  await call(follower, "put", "meanwhile", 1);
  await until("the follower leads", async () => {
    const { synced, unsent } = await statusOf(follower);
    return synced && unsent === 0;
  });
  await profile.freeze(leader, false);
  await shows(leader, "meanwhile");
  await call(leader, "put", "awake", 1);
  await shows(follower, "awake");
  await Promise.all([untilSettled(leader), untilSettled(follower)]);
});

test("a page that comes back from the history shows what has happened meanwhile", async () => {
  const [leader, follower] = await twoTabs();
  await leader.page.goto("about:blank");
  await call(follower, "put", "meanwhile", 1);
  await leader.page.goBack();
  await shows(leader, "meanwhile");
  await Promise.all([untilSettled(leader), untilSettled(follower)]);
});

test("a full disk refuses what is written, and keeps what was saved", async () => {
  const before = await profile.openTab();
  await call(before, "put", "before", 1);
  await untilSettled(before);
  await profile.context.close();

  await begin(profile.link);
  await profile.fillDisk(true);
  const tab = await profile.openTab();
  expect(await call(tab, "put", "full", 1)).toMatchObject({ kind: "refused", code: "unavailable" });
  expect(await statusOf(tab)).toMatchObject({ durable: false });
  await shows(tab, "before");

  await profile.fillDisk(false);
  await profile.reload(tab);
  await call(tab, "put", "after", 1);
  await untilSettled(tab);
  expect((await itemsOf(tab)).map(({ category }) => category)).toEqual(["before", "after"]);
});

test("what one tab has saved waits for a tab that can open the store", async () => {
  await profile.fillDisk(true);
  const withoutStore = await profile.openTab();
  await untilSettled(withoutStore);
  expect(await statusOf(withoutStore)).toMatchObject({ durable: false });
  await profile.fillDisk(false);
  const withStore = await profile.openTab();
  await untilSettled(withStore);
  profile.link.cut();
  expect(await call(withStore, "put", "saved", 1)).toMatchObject({ kind: "done", durable: true });
  await profile.closeTab(withStore, "close");
  profile.link.repair();
  await untilSettled(withoutStore);
  expect(await itemsOf(withoutStore)).toEqual([]);

  await untilSettled(await profile.openTab());
  await shows(withoutStore, "saved");
});
