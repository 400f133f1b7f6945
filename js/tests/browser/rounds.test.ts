import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as pause } from "node:timers/promises";
import { afterAll, beforeAll, test } from "vitest";
import { seeds } from "../random.js";
import { launch } from "./chromium.js";
import { Server } from "./processes.js";
import { Round, type Stage } from "./round.js";
import { Site } from "./site.js";

const ROUNDS = Number(process.env["GREGOR_ROUNDS"] ?? 5);
const HAS_FLEET = process.env["GREGOR_FLEET"] !== undefined;
const STEPS = 30;
const MAX_MS = 170_000;

let stage: Stage;

beforeAll(async () => {
  const folder = mkdtempSync(join(tmpdir(), "gregor-"));
  const site = await Site.serve("device-page.ts");
  const starting = HAS_FLEET ? Server.startFleet(site.origin) : Server.start(folder, site.origin);
  const [browser, server] = await Promise.all([launch(), starting]);
  stage = { browser, server, site, folder };
});
afterAll(async () => {
  await stage.browser.close();
  await stage.server.stop();
  stage.site.close();
  rmSync(stage.folder, { recursive: true });
});

test.each(seeds(ROUNDS))("all devices agree after a round with the seed %i", async (seed) => {
  const round = new Round(seed, stage);
  const timeout = pause(MAX_MS).then(() => Promise.reject(new Error("it does not end")));
  await Promise.race([round.play(STEPS), timeout]).catch((error: unknown) => {
    const trace = round.trace.slice(-60).join("\n");
    throw new Error(`reproduce with GREGOR_SEED=${seed}\n${trace}`, { cause: error });
  });
});
