import { expect, test } from "vitest";
import { vectors } from "./files.js";
import { SessionRun, type SessionCase } from "./session-run.js";

const { cases } = vectors("session") as { cases: readonly SessionCase[] };

test.each(cases)("$name", ({ steps }) => {
  const run = new SessionRun();
  for (const step of steps) expect(run.feed(step.in)).toStrictEqual(step.out);
});
