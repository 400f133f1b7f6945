// Measures the systems in Chromium, and prints the samples as JSON.
//
// node run.ts '{"site": 8000, "gregor": "http://…", "tinybase": "http://…", "centrifugo": null, "quick": true}'

import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Browser, BrowserContext, Page } from "playwright-core";
import { launch, launchProfile } from "../../js/tests/browser/chromium.ts";
import { sizeOf, type Client } from "./bundle.ts";
import { range, userWith } from "./items.ts";
import type { Write } from "./pages/app.tsx";
import { serve } from "./site.ts";
import { fill, systemsAt, type Addresses, type ServerSystem } from "./systems.ts";

interface Settings extends Addresses {
  /** The port of the web site. */
  readonly site: number;
  readonly quick: boolean;
}

/** All samples of a figure, by system. */
interface Samples {
  readonly name: string;
  readonly unit: "bytes" | "ms" | "renders";
  readonly samples: Readonly<Record<string, readonly number[]>>;
}

const settings = JSON.parse(process.argv[2]!) as Settings;
const { runs, rounds, sizes } = settings.quick
  ? { runs: 1, rounds: 3, sizes: [200] }
  : { runs: 5, rounds: 100, sizes: [2_000, 10_000] };
const WARM_UP = 10;
const ROWS = 100;
const LATE_RENDERS_MS = 300;

const systems = systemsAt(settings);
const figures = new Map<string, { unit: Samples["unit"]; samples: Record<string, number[]> }>();

function add(name: string, unit: Samples["unit"], system: string, ...values: readonly number[]): void {
  const figure = figures.get(name) ?? { unit, samples: {} };
  figures.set(name, figure);
  (figure.samples[system] ??= []).push(...values);
}

async function open(context: BrowserContext, name: string, system: ServerSystem, items: number): Promise<Page> {
  const page = await context.newPage();
  page.on("pageerror", (error) => console.error(`${name}: ${error.stack}`));
  const parameters = new URLSearchParams({ address: system.address, user: userWith(items) });
  await page.goto(`http://127.0.0.1:${settings.site}/${name}?${parameters}`);
  return page;
}

const count = (items: number): string => `${items.toLocaleString("en")} items`;

/** The bytes that a page uses in its heap. */
async function heapOf(page: Page): Promise<number> {
  const devtools = await page.context().newCDPSession(page);
  await devtools.send("HeapProfiler.collectGarbage");
  const { usedSize } = await devtools.send("Runtime.getHeapUsage");
  await devtools.detach();
  return usedSize;
}

async function inNewFolder(measure: (folder: string) => Promise<void>): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), "gregor-bench-"));
  try {
    await measure(folder);
  } finally {
    rmSync(folder, { recursive: true });
  }
}

/** A first sync, its memory, and a cold start: each in a browser that has just been started. */
const measureStarts = (system: ServerSystem, items: number): Promise<void> =>
  inNewFolder(async (folder) => {
    const profile = await launchProfile(folder);
    const page = await open(profile, system.name, system, items);
    const empty = await heapOf(page);
    const { shown, stored } = await page.evaluate((items) => globalThis.page.firstSync(items), items);
    add(`first sync of ${count(items)}, until all are visible`, "ms", system.name, shown);
    if (system.isStored) add(`first sync of ${count(items)}, until all are stored`, "ms", system.name, stored);
    add(`memory of ${count(items)}`, "bytes", system.name, (await heapOf(page)) - empty);
    await profile.close();
    if (system.isStored) await measureColdStart(folder, system, items);
  });

async function measureColdStart(folder: string, system: ServerSystem, items: number): Promise<void> {
  const profile = await launchProfile(folder);
  const page = await open(profile, system.name, system, items);
  const shown = await page.evaluate((items) => globalThis.page.coldStart(items), items);
  add(`cold start with ${count(items)}, until all are visible`, "ms", system.name, shown);
  await profile.close();
}

/** Two tabs of one browser. In Gregor, the first one leads, and the second one follows. */
const measureTabs = (system: ServerSystem, items: number): Promise<void> =>
  inNewFolder(async (folder) => {
    const profile = await launchProfile(folder);
    const first = await open(profile, system.name, system, items);
    await first.evaluate((items) => globalThis.page.firstSync(items), items);
    await first.evaluate(() => globalThis.page.answer());
    const second = await open(profile, system.name, system, items);
    await second.evaluate((items) => globalThis.page.firstSync(items), items);
    const all = WARM_UP + rounds;
    const written = await second.evaluate((rounds) => globalThis.page.toOtherTab(rounds), all);
    add("a write, until it is visible in another tab", "ms", system.name, ...written.slice(WARM_UP));
    if (system.address) {
      const told = await second.evaluate((rounds) => globalThis.page.fromServer(rounds), all);
      add("a backend's write, until it is visible in a second tab", "ms", system.name, ...told.slice(WARM_UP));
    }
    await profile.close();
  });

/** The renders of a page for each of some changes, from this page and from a backend. */
async function measureRenders(browser: Browser, system: ServerSystem): Promise<void> {
  const context = await browser.newContext();
  const page = await open(context, `${system.name}-react`, system, ROWS);
  let [rows, theme] = [ROWS, ""];
  const settled = async (): Promise<number> => {
    await page.waitForFunction((shown) => String(globalThis.app?.shown()) === shown, `${rows},${theme}`);
    await page.waitForTimeout(LATE_RENDERS_MS);
    return page.evaluate(() => globalThis.app.renders());
  };
  const measure = async (what: string, by: "write" | "writeOnServer", write: Write): Promise<void> => {
    const before = await settled();
    await page.evaluate(([by, write]) => globalThis.app[by](write), [by, write] as const);
    if ("item" in write) rows++;
    else theme = write.value;
    const from = by === "write" ? "written here" : "from the server";
    add(`renders for ${what}, ${from}`, "renders", system.name, (await settled()) - before);
  };
  for (const [n, by] of (["write", "writeOnServer"] as const).entries()) {
    await measure("a new item", by, { item: ROWS + n });
    await measure("a changed setting", by, { name: "theme", value: `dark ${n}` });
    await measure("the same setting again", by, { name: "theme", value: `dark ${n}` });
  }
  await context.close();
}

async function measureSizes(): Promise<void> {
  for (const withReact of ["", " with React"]) {
    for (const name of ["gregor", "tinybase", ...(withReact ? [] : ["centrifuge"])]) {
      const bytes = await sizeOf(`${name}${withReact}` as Client);
      add(`size of the client${withReact}`, "bytes", name, bytes);
    }
  }
}

const withReact = systems.filter(({ name }) => ["gregor", "tinybase"].includes(name));
const pages = [...systems.map(({ name }) => name), ...withReact.map(({ name }) => `${name}-react`)];
const site = await serve(settings.site, pages, systems);
for (const items of [ROWS, ...sizes]) await fill(systems, items);
await measureSizes();
for (const items of sizes) {
  for (const _ of range(runs)) for (const system of systems) await measureStarts(system, items);
}
for (const system of systems) await measureTabs(system, sizes[0]!);
const browser = await launch();
for (const system of withReact) await measureRenders(browser, system);
await browser.close();
site.close();
console.log(JSON.stringify([...figures].map(([name, figure]): Samples => ({ name, ...figure }))));
