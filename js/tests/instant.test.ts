import fc from "fast-check";
import { expect, test } from "vitest";
import * as given from "../src/arguments.js";
import { MAX_TIME, SECOND, after } from "../src/instant.js";

const HOUR = 3600 * SECOND;

/** What a browser with Temporal has. */
const temporal = (text: string) => ({ toJSON: () => text });

test.each([
  ["a Date", new Date("2026-01-31T12:00:00.5Z"), { time: 1_769_860_800_500_000 }],
  ["text in UTC", "2026-01-31T12:00:00Z", { time: 1_769_860_800_000_000 }],
  ["text with a zone", "2026-01-31T12:00:00+01:00", { time: 1_769_857_200_000_000 }],
  ["text with a fraction", "2026-01-31T12:00:00.250Z", { time: 1_769_860_800_250_000 }],
  ["an Instant of Temporal", temporal("2026-01-31T12:00:00Z"), { time: 1_769_860_800_000_000 }],
  ["a Duration of Temporal", temporal("PT1H"), { offset: HOUR }],
  ["microseconds", { time: 1_769_860_800_000_001 }, { time: 1_769_860_800_000_001 }],
  ["an offset of microseconds", { offset: -7 }, { offset: -7 }],
  ["seconds", "90s", { offset: 90 * SECOND }],
  ["several units", "1h30m", { offset: 1.5 * HOUR }],
  ["a fraction", "1.5d", { offset: 36 * HOUR }],
  ["milliseconds", "1ms", { offset: 1000 }],
  ["microseconds as text", "7us", { offset: 7 }],
  ["weeks", "2w", { offset: 14 * 24 * HOUR }],
  ["a sign", "+5m", { offset: 300 * SECOND }],
  ["a negative duration", "-5m", { offset: -300 * SECOND }],
  ["nothing", "0s", { offset: 0 }],
  ["less than nothing", "-0s", { offset: 0 }],
  ["days of ISO 8601", "P1D", { offset: 24 * HOUR }],
  ["a duration of ISO 8601", "-P1DT2H30M1.5S", { offset: -(26.5 * HOUR + 1.5 * SECOND) }],
  ["minutes of ISO 8601", "PT1M", { offset: 60 * SECOND }],
])("%s is a time or a duration", (_, when, expected) => {
  expect(given.instant("at", when)).toStrictEqual(expected);
});

test.each([
  ["a bare number, which does not say its unit", 90],
  ["digits, for the same reason", "1769860800000000"],
  ["a time without a zone", "2026-01-31T12:00:00"],
  ["a day", "2026-01-31"],
  ["a time that does not exist", "2026-01-31T25:00:00Z"],
  ["no Date", new Date(NaN)],
  ["a month, which has no length", "P1M"],
  ["a year", "P1Y"],
  ["an ISO 8601 duration of nothing", "P"],
  ["one without its T", "P1H"],
  ["one whose T has nothing after it", "P1DT"],
  ["no unit", "90"],
  ["a space", "1h 30m"],
  ["two signs", "--5m"],
  ["two points", "1.2.3s"],
  ["no text", ""],
  ["no time at all", null],
  ["true", true],
  ["an array", []],
  ["neither time nor offset", {}],
  ["text as microseconds", { time: "1h" }],
  ["a fraction of a microsecond", { offset: 0.5 }],
  ["seconds as microseconds", { time: 1_769_860_800 }],
  ["milliseconds as microseconds", { time: 1_769_860_800_000 }],
  ["a time before 2001", "2000-12-31T23:59:59Z"],
  ["a time after 2255", "2256-01-01T00:00:00Z"],
  ["an offset of more than 285 years", "99999999999d"],
])("%s is no time, and the error names the argument", (_, when) => {
  expect(() => given.instant("expires", when)).toThrow(
    expect.objectContaining({ code: "invalid", field: "expires" }),
  );
});

test("a duration that is too short is refused", () => {
  expect(given.instant("starts", "0s", 0)).toEqual({ offset: 0 });
  expect(() => given.instant("starts", "-1us", 0)).toThrow(/starts/);
  expect(() => given.instant("expires", "999ms", SECOND)).toThrow(/from 1000000 µs/);
});

test("a Date is the same to the millisecond", () => {
  const dates = fc.date({
    min: new Date("2001-01-01T00:00:00Z"),
    max: new Date("2255-01-01T00:00:00Z"),
    noInvalidDate: true,
  });
  fc.assert(
    fc.property(dates, (date) => {
      expect(given.instant("at", date)).toEqual({ time: date.getTime() * 1000 });
      expect(given.instant("at", date.toISOString())).toEqual({ time: date.getTime() * 1000 });
    }),
  );
});

test("an offset counts from its base, up to the last time", () => {
  fc.assert(
    fc.property(fc.maxSafeNat(), fc.maxSafeInteger(), (base, offset) => {
      const time = after({ offset }, base);
      expect(time).toBe(Number(BigInt(base) + BigInt(offset)) > MAX_TIME ? MAX_TIME : base + offset);
      expect(Number.isSafeInteger(time)).toBe(true);
      expect(after({ time: base }, offset)).toBe(base);
    }),
  );
});
