/**
 * The arguments of the app, as the values that messages hold.
 *
 * Each function returns what was certainly meant, or throws `invalid`, which names the argument.
 * Nothing else is converted: what is stored is what the app wrote.
 */

import { invalid, stop } from "./errors.js";
import { MAX_TIME, SECOND, parseWhen, type Time, type TimeOrOffset } from "./instant.js";
import { decode, hasExactIntegers, written } from "./json.js";

const MAX_BODY = 64 * 1024;

/** 2001-01-01: seconds or milliseconds that are taken for microseconds lie before it. */
export const EARLIEST_TIME: Time = 978_307_200 * SECOND;

export const byteLength = (text: string): number => new TextEncoder().encode(text).length;

/** Half of a surrogate pair has no UTF-8. */
const isUnicode = (text: string): boolean => !/\p{Surrogate}/u.test(text);

/** Whether it is text of 1 to `limit` bytes that every store accepts. */
export const isText = (value: unknown, limit: number): value is string =>
  typeof value === "string" && !!value && byteLength(value) <= limit && isUnicode(value) && !value.includes("\0");

/** Text as `isText` has it. */
export function text(field: string, value: unknown, limit = 255): string {
  if (isText(value, limit)) return value;
  throw invalid(field, `must be text of 1 to ${limit} bytes of UTF-8, without NUL`);
}

/** Texts, from an array of them: at least `least`. (The characters of a string are none.) */
export function texts(field: string, values: unknown, limit = 255, least = 0): readonly string[] {
  if (Array.isArray(values) && values.length >= least) {
    return values.map((value) => text(field, value, limit));
  }
  throw invalid(field, `must be an array of at least ${least}`);
}

export function flag(field: string, value: unknown): boolean {
  if (typeof value === "boolean") return value;
  throw invalid(field, "must be true or false");
}

/** A time after 2000, or a duration that is not shorter than `shortest`. */
export function instant(field: string, when: unknown, shortest = -MAX_TIME): TimeOrOffset {
  const { time, offset } = parseWhen(when);
  if (isFrom(EARLIEST_TIME, time)) return { time };
  if (isFrom(shortest, offset)) return { offset };
  throw invalid(
    field,
    "must be a Date, a time such as 2026-01-31T12:00:00Z after 2000, or a duration such as 90s" +
      (shortest < 0 ? "" : ` of at least ${shortest} µs`),
  );
}

const isFrom = (least: number, value: unknown): value is number =>
  Number.isSafeInteger(value) && (value as number) >= least;

/** A copy of the value, as its JSON says it. What JSON would silently turn into something else is
 * refused, except an undefined member of an object, which is left out, and what says itself how it
 * is written (as a Date does). */
export function body(field: string, value: unknown): unknown {
  let hasBigint = false;
  function checked(this: unknown, _: string, part: unknown): unknown {
    if (!isSaid(part, Array.isArray(this))) throw TypeError(`${typeof part} ${part as string}`);
    hasBigint ||= typeof part === "bigint";
    return written(part);
  }
  let json;
  try {
    json = JSON.stringify(value, checked);
  } catch (error) {
    throw invalid(field, `is not JSON: ${error as string}`);
  }
  if (byteLength(json) > MAX_BODY) {
    throw stop("too-large", `\`${field}\` takes more than ${MAX_BODY} bytes of JSON`, field);
  }
  return decode(json, hasBigint);
}

/** Whether JSON says this as it is. */
function isSaid(part: unknown, isElement: boolean): boolean {
  switch (typeof part) {
    case "number":
      return Number.isFinite(part);
    case "string":
      return isUnicode(part);
    case "undefined":
      return !isElement;
    case "bigint":
      return hasExactIntegers();
    case "object":
      return Array.isArray(part) || isPlain(part);
    default:
      return part === !!part;
  }
}

/** Whether an object is no instance of a class. (That of another window has another Object.) */
function isPlain(value: object | null): boolean {
  const prototype: unknown = value && Object.getPrototypeOf(value);
  return !prototype || !Object.getPrototypeOf(prototype);
}
