/**
 * The arguments of the app, as the values that messages hold.
 *
 * Each function returns what was certainly meant, or throws `invalid`, which names the argument.
 * Nothing else is converted: what is stored is what the app wrote.
 */

import { invalid, stop } from "./errors.js";
import { MAX_TIME, SECOND, parseWhen, type Time, type TimeOrOffset } from "./instant.js";
import { decode, written } from "./json.js";

const MAX_BODY = 64 * 1024;

/** 2001-01-01: seconds or milliseconds that are taken for microseconds lie before it. */
export const EARLIEST_TIME: Time = 978_307_200 * SECOND;

export const byteLength = (text: string): number => new TextEncoder().encode(text).length;

/** Half of a surrogate pair, which has no UTF-8, as JSON.stringify writes it. */
const HALF_PAIR = /(?<!\\)(\\\\)*\\ud[89a-f]/;

/** Whether it is text of 1 to `limit` bytes that every store accepts. */
export const isText = (value: unknown, limit: number): value is string =>
  typeof value === "string" &&
  !!value &&
  !/\0|\p{Surrogate}/u.test(value) &&
  byteLength(value) <= limit;

/** Text as `isText` has it. */
export function text(field: string, value: unknown, limit = 255): string {
  if (isText(value, limit)) return value;
  throw invalid(field, `must be text of 1 to ${limit} bytes, without NUL`);
}

/** An id that can stand in the path of a URL. */
export function identifier(field: string, value: unknown, limit = 128): string {
  if (value === "." || value === "..") throw invalid(field, "must not be `.` or `..`");
  return text(field, value, limit);
}

/** Texts, from an array of them: at least `least`. (The characters of a string are none.) */
export function texts(field: string, values: unknown, limit = 255, least = 0): readonly string[] {
  if (Array.isArray(values) && values.length >= least) {
    return values.map((value) => text(field, value, limit));
  }
  throw invalid(field, `must be an array of at least ${least}`);
}

/** A time after 2000, or a duration that is not shorter than `shortest`. */
export function instant(field: string, when: unknown, shortest = -MAX_TIME): TimeOrOffset {
  const { time, offset } = parseWhen(when);
  if (isFrom(EARLIEST_TIME, time)) return { time };
  if (isFrom(shortest, offset)) return { offset };
  throw invalid(
    field,
    `must be a time after 2000 (a Date, 2026-01-31T12:00:00Z) or a duration (90s) from ${shortest} µs`,
  );
}

const isFrom = (least: number, value: unknown): value is number =>
  Number.isSafeInteger(value) && (value as number) >= least;

/** A copy of the value as JSON.stringify writes it: what every device reads. (So a Date is text, and
 * NaN is null, from the beginning.) */
export function body(field: string, value: unknown): unknown {
  let hasBigint = false;
  const json = JSON.stringify(value, (name, part: unknown) => {
    hasBigint ||= typeof part === "bigint";
    return written(name, part);
  });
  if (!json || HALF_PAIR.test(json)) throw invalid(field, "is not valid JSON");
  if (byteLength(json) > MAX_BODY) {
    throw stop("too-large", `\`${field}\` has more than ${MAX_BODY} bytes`, field);
  }
  return decode(json, hasBigint);
}
