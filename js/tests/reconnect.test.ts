import fc from "fast-check";
import { expect, test } from "vitest";
import { ReconnectPolicy } from "../src/reconnect.js";

// Vectors have the exact delays; these are the bounds that hold for all.

test("no failure, and nothing that a server asks for, keeps a device away for more than two minutes", () => {
  const failure = fc.record({
    pause: fc.double({ min: 0, max: 1e6, noNaN: true }),
    random: fc.double({ min: 0, max: 1, noNaN: true }),
    asked: fc.double({ noNaN: true }),
    goaway: fc.option(fc.double({ noNaN: true }), { nil: undefined }),
  });
  fc.assert(
    fc.property(fc.array(failure, { maxLength: 2000, size: "max" }), (failures) => {
      const policy = new ReconnectPolicy();
      let now = 0;
      for (const { pause, random, asked, goaway } of failures) {
        now += pause;
        if (goaway !== undefined) policy.goaway(now, random, goaway);
        const seconds = policy.wait(now, random, asked);
        expect(seconds).toBeGreaterThanOrEqual(0);
        expect(seconds).toBeLessThanOrEqual(120);
      }
    }),
    { numRuns: 20 },
  );
});

test("after a sync, the next failure is a first one", () => {
  const policy = new ReconnectPolicy();
  for (let now = 0; now < 1000; now += 100) policy.wait(now, 1);
  policy.synced();
  expect(policy.wait(2000, 1)).toBe(0.5);
});
