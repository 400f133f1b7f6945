/** What time it is by the node's clock, whatever the clocks of the device do. */

import fc from "fast-check";
import { expect, test } from "vitest";
import { MAX_TIME, SECOND } from "../src/instant.js";
import { nodeClock } from "../src/node-clock.js";

const HOUR = 3600;

/** A device's two clocks, in seconds. */
class Clocks {
  wall = 1_000_000;
  steady = 0;
  now = () => this.wall * 1000;
  monotonic = () => this.steady * 1000;

  pass(seconds: number): void {
    this.wall += seconds;
    this.steady += seconds;
  }
}

const at = (seconds: number): number => seconds * SECOND;

function start(offset = 0) {
  const clocks = new Clocks();
  return { clocks, clock: nodeClock(clocks, at(offset)) };
}

test("it begins at the offset that was kept, and counts on by the monotonic clock", () => {
  const { clocks, clock } = start(HOUR);
  expect(clock.now()).toBe(at(1_000_000 + HOUR));
  clocks.steady += 10;
  clocks.wall -= 500;
  expect(clock.now()).toBe(at(1_000_000 + HOUR + 10));
});

test.each([
  ["within what the node has told", 1_000_000, 0, 1_000_000],
  ["ahead of the node", 1_000_000 - HOUR, 2, 1_000_000 - HOUR + 2],
  ["behind the node", 1_000_000 + HOUR, 2, 1_000_000 + HOUR],
])("an estimate that is %s moves as far as it must", (_, told, waited, expected) => {
  const { clocks, clock } = start();
  const asked = clock.monotonic();
  clocks.pass(waited);
  clock.told(at(told), asked);
  expect(clock.now()).toBe(at(Math.max(expected, 0)));
  expect(clock.offset()).toBe(at(expected - 1_000_000 - waited));
});

test("a time of the past moves it forward only", () => {
  const { clock } = start();
  clock.told(at(1_000_000 - HOUR));
  expect(clock.now()).toBe(at(1_000_000));
  clock.told(at(1_000_000 + 5));
  expect(clock.now()).toBe(at(1_000_005));
});

test("a wall clock that was set back was wrong", () => {
  const { clocks, clock } = start();
  clocks.pass(5);
  clocks.wall -= HOUR;
  expect(clock.wasSuspended(true)).toBe(false);
  expect(clock.now()).toBe(at(1_000_005));
  expect(clock.offset()).toBe(at(HOUR));
});

test("a jump forward is a suspend, unless a node says otherwise", () => {
  const { clocks, clock } = start();
  clocks.wall += HOUR;
  expect(clock.wasSuspended(true)).toBe(true);
  expect(clock.now()).toBe(at(1_000_000));
  expect(clock.wasSuspended(false)).toBe(true);
  expect(clock.now()).toBe(at(1_000_000 + HOUR));
  expect(clock.wasSuspended(false)).toBe(false);
});

test("a node that answers after a jump decides", () => {
  const { clocks, clock } = start();
  clocks.wall += HOUR;
  expect(clock.wasSuspended(true)).toBe(true);
  clock.told(at(1_000_000), clock.monotonic());
  expect(clock.wasSuspended(false)).toBe(false);
  expect(clock.now()).toBe(at(1_000_000));
});

test("law: the estimate is within what the node has told, and within all times", () => {
  const seconds = fc.integer({ min: -10_000, max: 10_000 });
  const step = fc.record({ pass: fc.nat(100), jump: seconds, ahead: seconds, waited: fc.nat(20) });
  fc.assert(
    fc.property(fc.array(step, { maxLength: 20 }), seconds, (steps, offset) => {
      const { clocks, clock } = start(offset);
      for (const { pass, jump, ahead, waited } of steps) {
        clocks.pass(pass);
        clocks.wall += jump;
        clock.wasSuspended(pass % 2 === 0);
        const asked = clock.monotonic();
        const told = at(2_000_000 + ahead);
        clocks.pass(waited);
        clock.told(told, asked);
        expect(clock.now()).toBeGreaterThanOrEqual(told);
        expect(clock.now()).toBeLessThanOrEqual(told + at(waited));
        expect(Number.isSafeInteger(clock.now())).toBe(true);
        expect(clock.now()).toBeLessThanOrEqual(MAX_TIME);
      }
    }),
  );
});

test("law: what the wall clock does alone does not move the estimate of a device that is online", () => {
  fc.assert(
    fc.property(fc.array(fc.integer({ min: -5000, max: 5000 }), { maxLength: 20 }), (jumps) => {
      const { clocks, clock } = start();
      for (const jump of jumps) {
        clocks.wall += jump;
        clock.wasSuspended(true);
        expect(clock.now()).toBe(at(1_000_000));
      }
    }),
  );
});
