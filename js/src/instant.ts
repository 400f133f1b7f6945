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
const ISO_8601 = /^P(?=.)([\d.]+D)?(T(?=.)([\d.]+H)?([\d.]+M)?([\d.]+S)?)?$/;
const RFC_3339 = /^(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d)(\.\d+)?(Z|[-+]\d\d:\d\d)$/i;

/** Microseconds since the epoch, from text with a zone; NaN if it is no time. */
function timeOf(text: string): number {
  const [, date = "", clock, fraction = 0, zone = ""] = RFC_3339.exec(text) ?? [];
  // Date.parse takes some days that do not exist for others.
  const exists = new Date(date).toJSON()?.startsWith(date);
  return exists ? Date.parse(`${date}T${clock}${zone}`) * 1e3 + Math.round(+fraction * 1e6) : NaN;
}

/** Microseconds, from text such as `1h30m`, `-5m` or `P1D`; NaN if it is no duration. */
function durationOf(text: string): number {
  const amount = text.replace(/^[-+]/, "");
  const parts = ISO_8601.test(amount) ? amount.replace(/[PT]/g, "").toLowerCase() : amount;
  let sum = 0;
  const rest = parts.replace(/(\d+(?:\.\d+)?)(us|ms|[smhdw])/g, (_, number, unit: string) => {
    sum += number * (UNITS[unit] ?? NaN);
    return "";
  });
  if (rest || !parts) return NaN;
  return Math.round(text.startsWith("-") ? 0 - sum : sum);
}

/** What an app wrote as a time or a duration: at most one of the two, and perhaps no number. */
export function parseWhen(when: unknown): { readonly time?: unknown; readonly offset?: unknown } {
  const { toJSON } = Object(when) as { toJSON?: unknown };
  const value: unknown = typeof toJSON === "function" ? toJSON.call(when) : when;
  if (typeof value !== "string") return Object(value) as object;
  return /^\d{4}-/.test(value) ? { time: timeOf(value) } : { offset: durationOf(value) };
}
