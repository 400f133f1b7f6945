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
const PARTS = /^(\d+(\.\d+)?(us|ms|[smhdw]))+$/;
const ISO_8601 = /^P(?=.)([\d.]+D)?(T(?=.)([\d.]+H)?([\d.]+M)?([\d.]+S)?)?$/;
const RFC_3339 =
  /^(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(\.\d+)?([Zz]|[-+]([01]\d|2[0-3]):[0-5]\d)$/;

/** Microseconds since the epoch, from text with a zone; NaN if it is no time. */
function timeOf(text: string): number {
  const [, date, clock, fraction = 0, zone = ""] = RFC_3339.exec(text) ?? [];
  const shown = `${date}T${clock}`;
  // Date.parse takes some days that do not exist for others.
  const exists = new Date(`${shown}Z`).toJSON()?.startsWith(shown);
  return exists ? Date.parse(shown + zone.toUpperCase()) * 1e3 + Math.round(+fraction * 1e6) : NaN;
}

/** Microseconds, from text such as `1h30m`, `-5m` or `P1D`; NaN if it is no duration. */
function durationOf(text: string): number {
  const amount = text.replace(/^[-+]/, "");
  const parts = ISO_8601.test(amount) ? amount.replace(/[PT]/g, "").toLowerCase() : amount;
  if (!PARTS.test(parts)) return NaN;
  let sum = 0;
  for (const [, number, unit] of parts.matchAll(/([\d.]+)([a-z]+)/g)) {
    sum += Number(number) * (UNITS[unit ?? ""] ?? NaN);
  }
  return text.startsWith("-") ? 0 - Math.round(sum) : Math.round(sum);
}

/** The time or the offset that this JSON is, in microseconds; undefined if it is neither. Text
 * stands for the integer that it means. */
export function timeOrOffsetOf(json: unknown): TimeOrOffset | undefined {
  const { time, offset } = Object(json) as Record<string, unknown>;
  if ((time == null) === (offset == null)) return undefined;
  const given = time ?? offset;
  const micros = typeof given !== "string" ? given : time == null ? durationOf(given) : timeOf(given);
  if (typeof micros !== "number" || !Number.isSafeInteger(micros)) return undefined;
  if (time == null) return { offset: micros };
  return micros < 0 ? undefined : { time: micros };
}

/** What an app wrote as a time or a duration; undefined if it is neither. */
export function parseWhen(when: unknown): TimeOrOffset | undefined {
  const { toJSON } = Object(when) as { toJSON?: unknown };
  const value: unknown = typeof toJSON === "function" ? toJSON.call(when) : when;
  if (typeof value !== "string") return timeOrOffsetOf(value);
  return timeOrOffsetOf(/^\d{4}-/.test(value) ? { time: value } : { offset: value });
}
