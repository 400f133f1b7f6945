import { expect, test } from "vitest";
import { DeviceRun } from "./device.js";
import { vectors, type Case } from "./files.js";

const { cases } = vectors("replica") as { cases: readonly Case[] };

test.each(cases)("$name", ({ steps }) => {
  const device = new DeviceRun();
  for (const step of steps) expect(device.feed(step.in)).toStrictEqual(step.out);
});
