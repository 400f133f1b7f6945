/** Times and offsets in microseconds, and a parser for the notations that people use. */

/** Microseconds since the Unix epoch: an integer below 2^53, so a number of JavaScript is exact. */
export type Time = number;

/** The latest time that every JSON parser represents exactly (in the year 2255). */
export const MAX_TIME: Time = Number.MAX_SAFE_INTEGER;

export const SECOND = 1_000_000;

/** A time, or an offset from the ctime of the message that carries it (in a query: from now). Both
 * count microseconds. */
export type TimeOrOffset =
  | { readonly time: Time; readonly offset?: never }
  | { readonly offset: number; readonly time?: never };

/** A time or a duration, as an app writes it: a `Date`, text such as `2026-01-31T12:00:00Z`, `90s`,
 * `1h30m`, `-5m` or `P1D`, an Instant or a Duration of Temporal, or microseconds that say what they
 * are. A bare number is none of them, since it does not say its unit. */
export type When = Date | string | TimeOrOffset | { toJSON(): string };

/** The time that is meant; an offset counts from `base`. Capped at MAX_TIME. */
export const after = (instant: TimeOrOffset, base: Time): Time =>
  instant.time ?? Math.min(base + instant.offset, MAX_TIME);

const UNITS: Readonly<Record<string, number>> = {
  us: 1,
  ms: 1e3,
  s: 1e6,
  m: 6e7,
  h: 36e8,
  d: 864e8,
  w: 6048e8,
};
const DURATION = /^[-+]?(P(?=.)([\d.]+D)?(T([\d.]+[HMS])+)?|([\d.]+(us|ms|[smhdw]))+)$/;

/** Microseconds since the epoch, to the millisecond as in a Date, from text with a zone; NaN if it is
 * no time. */
const timeOf = (text: string): number =>
  /T.+(Z|[-+]\d\d:\d\d)$/.test(text) ? Date.parse(text) * 1e3 : NaN;

/** Microseconds, from text such as `1h30m`, `-5m` or `P1D`; NaN if it is no duration. */
function durationOf(text: string): number {
  let sum = DURATION.test(text) ? 0 : NaN;
  for (const [, number, unit = ""] of text.toLowerCase().matchAll(/([\d.]+)(us|ms|[smhdw])/g)) {
    sum += Number(number) * (UNITS[unit] ?? NaN);
  }
  return Math.round(text.startsWith("-") ? 0 - sum : sum);
}

/** What an app wrote as a time or a duration: at most one of the two, and perhaps no number. */
export function parseWhen(when: unknown): { readonly time?: unknown; readonly offset?: unknown } {
  const value: unknown = Object(when).toJSON?.() ?? when;
  if (typeof value !== "string") return Object(value);
  return /^\d{4}-/.test(value) ? { time: timeOf(value) } : { offset: durationOf(value) };
}
