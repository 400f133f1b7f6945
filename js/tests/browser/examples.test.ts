/** The examples in a real browser, with real servers. */

import { mkdtempSync, readFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Browser, BrowserContext, Page } from "playwright-core";
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from "vitest";
import { minified } from "../../scripts/minified.js";
import { Program } from "../program.js";
import { launch } from "./chromium.js";
import { problemsOf } from "./problems.js";
import { freePort, Server, until } from "./processes.js";

const JS = join(import.meta.dirname, "../..");

let browser: Browser;
let context: BrowserContext;
let problems: readonly string[];

beforeAll(async () => {
  browser = await launch();
});
afterAll(() => browser.close());

beforeEach(async () => {
  context = await browser.newContext();
  problems = problemsOf(context);
});
afterEach(async () => {
  await context.close();
  expect(problems).toEqual([]);
});

const newFolder = (): string => mkdtempSync(join(tmpdir(), "gregor-"));

async function tabAt(address: string): Promise<Page> {
  const page = await context.newPage();
  await page.goto(address);
  return page;
}

const shows = (page: Page, selector: string, text: string): Promise<void> =>
  until(`${selector} shows ${text}`, async () => (await page.textContent(selector)) === text);

test("the page of fifteen lines shows its badge offline, and in two tabs", async () => {
  const site = "http://127.0.0.1/";
  const server = await Server.start(newFolder(), new URL(site).origin);
  try {
    const stored = async (): Promise<number> =>
      (await server.request("users/alice/count?prefix=unread."))[0].counts["unread."];
    await servePage(site, server);
    const [one, two] = [await tabAt(site), await tabAt(site)];
    await one.click("#add");
    await two.click("#add");
    await Promise.all([shows(one, "#badge", "2"), shows(two, "#badge", "2")]);
    await until("both are stored", async () => (await stored()) === 2);

    await server.stop();
    await one.click("#add");
    await Promise.all([shows(one, "#badge", "3"), shows(two, "#badge", "3")]);
    await two.reload();
    await shows(two, "#badge", "3");
    await one.close();
    await two.click("#add");
    await shows(two, "#badge", "4");

    await server.start();
    await until("all are stored", async () => (await stored()) === 4);
    await two.click("#clear");
    await shows(two, "#badge", "0");
    await until("none is left", async () => !(await stored()));
  } finally {
    await server.stop();
    delete process.env["GREGOR_ALLOW_ORIGIN"];
  }
});

/** Gives the browser `examples/badge.html` for this server, and the bundle that it asks for. */
async function servePage(site: string, server: Server): Promise<void> {
  const entryPoints = [join(JS, "src/index.ts")];
  const { code = "" } = await minified({ entryPoints, format: "iife", globalName: "gregor" });
  const page = readFileSync(join(JS, "../examples/badge.html"), "utf8")
    .replace("http://127.0.0.1:9911", server.url)
    .replace('token: "alice"', `token: "${server.token("alice", 3600)}"`);
  await context.grantPermissions(["local-network-access"]); // a page that is given so is not local
  await context.route(`${site}**`, (route) =>
    new URL(route.request().url()).pathname === "/gregor.min.js"
      ? route.fulfill({ contentType: "text/javascript", body: code })
      : route.fulfill({ contentType: "text/html", body: page }),
  );
}

test("the shop's page has an inbox, settings, and the count of what is unread in its title", async () => {
  await import("../../scripts/example.js");
  const port = await freePort();
  const shop = new Program("uvicorn", ["examples.fastapi_app:app", "--port", `${port}`, "--log-level", "error"], {
    GREGOR_STORE: `sqlite:///${newFolder()}/shop.db`,
    GREGOR_AUTH: "jwt",
    GREGOR_JWT_SECRET: "a secret of tests, which has 32 bytes",
  });
  try {
    const address = `http://127.0.0.1:${port}/shop?customer=alice`;
    await shop.whileItRuns(until("the shop answers", async () => (await fetch(address)).ok));
    const [one, two] = [await tabAt(address), await tabAt(address)];
    const titles = (title: string): Promise<void> =>
      until(`both titles are ${title}`, async () => (await one.title()) === title && (await two.title()) === title);
    await shows(one, ".connection", "online");
    await one.click("text=Order an umbrella");
    await one.click("text=Order an umbrella");
    await titles("(2) The shop");
    await two.click("text=Mark as read");
    await titles("(1) The shop");
    await one.click("text=Archive");
    await until("one is left", async () => (await two.locator("li").count()) === 1);
    await one.click("text=Undo");
    await until("both are back", async () => (await two.locator("li").count()) === 2);
    await one.click("text=Mark all as read");
    await titles("The shop");
    await one.click("text=Dark");
    await until("the other tab is dark", async () => (await two.locator('[data-theme="dark"]').count()) === 1);
    await until("all is sent", async () => (await two.textContent(".connection")) === "online");
  } finally {
    await shop.end("SIGTERM");
  }
});
