import fc from "fast-check";
import { afterAll, beforeAll, expect, test } from "vitest";
import { DeviceRun } from "../vectors/device.js";
import { history } from "./histories.js";
import { Oracle } from "./oracle.js";

const HISTORIES = Number(process.env["GREGOR_HISTORIES"] ?? 500);
/** For one, on a busy machine. */
const HISTORY_MS = 200;

let oracle: Oracle;
beforeAll(() => {
  oracle = new Oracle();
});
afterAll(() => oracle.close());

test("a device shows, keeps, reports and sends what a Python device does", async () => {
  const law = fc.asyncProperty(history, async (history) => {
    const device = new DeviceRun();
    for (const step of await oracle.steps(history)) expect(device.feed(step.in)).toEqual(step.out);
  });
  await fc.assert(law, { numRuns: HISTORIES });
}, HISTORIES * HISTORY_MS);
