import type { Browser, Page } from "playwright-core";
import { afterAll, beforeAll, test } from "vitest";
import { STORE_CASES } from "../stores/cases.js";
import { launch } from "./chromium.js";
import { Site } from "./site.js";

let browser: Browser;
let site: Site;
let page: Page;

beforeAll(async () => {
  [browser, site] = await Promise.all([launch(), Site.serve("stores-page.ts")]);
  page = await browser.newPage();
  await page.goto(site.origin);
});
afterAll(async () => {
  await browser.close();
  site.close();
});

test.each(STORE_CASES)("IndexedDB of Chromium: $name", async ({ name }) => {
  await page.evaluate((name) => runCase(name), name);
});
