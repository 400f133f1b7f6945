import { mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Browser, BrowserContext, Page } from "playwright-core";
import { afterAll, beforeAll, beforeEach, expect, test } from "vitest";
import { launch } from "./chromium.js";
import { Link } from "./link.js";
import { problemsOf } from "./problems.js";
import { PythonDevice, Server, until } from "./processes.js";
import { Site } from "./site.js";

let browser: Browser;
let site: Site;
let context: BrowserContext;
let page: Page;
let problems: readonly string[];

beforeAll(async () => {
  [browser, site] = await Promise.all([launch(), Site.serve("empty-page.ts")]);
});
afterAll(async () => {
  await browser.close();
  site.close();
});
beforeEach(async () => {
  context = await browser.newContext();
  problems = problemsOf(context);
  page = await context.newPage();
  await page.goto(site.origin);
  return () => context.close();
});

test("a page has what the client needs of a browser", async () => {
  const has = await page.evaluate(() => [
    "indexedDB" in globalThis,
    "locks" in navigator,
    "BroadcastChannel" in globalThis,
    isSecureContext,
  ]);
  expect(has).toEqual([true, true, true, true]);
  expect(problems).toEqual([]);
});

test.each([
  ["an exception", 'setTimeout(() => { throw new Error("thrown") })'],
  ["a rejection that nobody handles", 'Promise.reject(new Error("thrown"))'],
  ["an error that is logged", 'console.error("thrown")'],
])("%s is a problem of its page", async (_, script) => {
  await page.evaluate(`void ${script}`);
  await until("the problem is known", async () => problems.length > 0);
  expect(problems).toEqual([expect.stringContaining("thrown")]);
});

test("what a device writes survives the death of its server, and the network between them", async () => {
  const folder = mkdtempSync(join(tmpdir(), "gregor-"));
  const server = await Server.start(folder, site.origin);
  const link = await Link.to(server.ports);
  const device = new PythonDevice(link.url, server.token("ann", 3600), "laptop", `${folder}/laptop.db`);
  try {
    await device.call("wait_synced");
    link.cut();
    await device.call("put", ["theme", "dark"]);
    await server.stop("SIGKILL");
    await server.start();
    link.repair();
    await device.call("reconnect");
    await device.call("flush");
    const [state] = await server.request("users/ann/state");
    expect(state.items).toMatchObject([{ category: "theme", body: "dark" }]);
  } finally {
    await device.close();
    await server.stop();
    link.close();
  }
});
