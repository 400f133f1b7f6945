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
