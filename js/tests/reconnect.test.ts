import fc from "fast-check";
import { expect, test } from "vitest";
import { reconnectPolicy } from "../src/reconnect.js";

// Vectors have the exact delays; these are the bounds that hold for all.

test("no failure, and nothing that a server asks for, keeps a device away for more than two minutes", () => {
  const failure = fc.record({
    pause: fc.double({ min: 0, max: 1e9, noNaN: true }),
    random: fc.double({ min: 0, max: 1, noNaN: true }),
    asked: fc.double(), // a date is no number
    goaway: fc.option(fc.double({ noNaN: true }), { nil: undefined }),
  });
  fc.assert(
    fc.property(fc.array(failure, { maxLength: 2000, size: "max" }), (failures) => {
      const policy = reconnectPolicy();
      let now = 0;
      for (const { pause, random, asked, goaway } of failures) {
        now += pause;
        if (goaway !== undefined) policy.goaway(now, random, goaway);
        const ms = policy.wait(now, random, asked);
        expect(ms).toBeGreaterThanOrEqual(0);
        expect(ms).toBeLessThanOrEqual(120_000);
      }
    }),
    { numRuns: 20 },
  );
});

test("after a sync, the next failure is a first one", () => {
  const policy = reconnectPolicy();
  for (let now = 0; now < 1_000_000; now += 100_000) policy.wait(now, 1);
  policy.synced();
  expect(policy.wait(2_000_000, 1)).toBe(500);
});
