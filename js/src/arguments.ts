/**
 * The arguments of the app, as the values that messages hold.
 *
 * Each function returns what was certainly meant, or throws `invalid`, which names the argument.
 * Nothing else is converted: what is stored is what the app wrote.
 */

import { invalid, stop } from "./errors.js";
import { MAX_TIME, SECOND, parseWhen, type Time, type TimeOrOffset } from "./instant.js";
import { encode, hasExactIntegers, type JSONValue } from "./json.js";

const MAX_BODY = 64 * 1024;
const MAX_DEPTH = 128;

/** 2001-01-01: seconds or milliseconds that are taken for microseconds lie before it. */
export const EARLIEST_TIME: Time = 978_307_200 * SECOND;

export const byteLength = (text: string): number => new TextEncoder().encode(text).length;

/** Half of a pair of surrogates has no UTF-8. */
const isUnicode = (text: string): boolean => !/\p{Surrogate}/u.test(text);

/** Whether it is text of 1 to `limit` bytes that every store accepts. */
export const isText = (value: unknown, limit: number): value is string =>
  typeof value === "string" && !!value && byteLength(value) <= limit && isUnicode(value) && !value.includes("\0");

/** Text as `isText` has it. */
export function text(field: string, value: unknown, limit = 255): string {
  if (!isText(value, limit)) {
    throw invalid(field, `must be text of 1 to ${limit} bytes of UTF-8, without NUL`);
  }
  return value;
}

/** A new id. No URL can have `.` or `..` in its path. */
export function identifier(field: string, value: unknown, limit = 128): string {
  if (value === "." || value === "..") throw invalid(field, `is ${value}, which no URL can contain`);
  return text(field, value, limit);
}

/** Texts, from an array of them. (The characters of a string are none.) */
export function texts(field: string, values: unknown, limit?: number): readonly string[] {
  if (!Array.isArray(values)) throw invalid(field, "must be an array");
  return values.map((value) => text(field, value, limit));
}

export function flag(field: string, value: unknown): boolean {
  if (typeof value !== "boolean") throw invalid(field, "must be true or false");
  return value;
}

/** A time after 2000, or a duration that is not shorter than `shortest`. */
export function instant(field: string, when: unknown, shortest = -MAX_TIME): TimeOrOffset {
  const { time, offset } = parseWhen(when) ?? {};
  if (time !== undefined && time >= EARLIEST_TIME) return { time };
  if (offset !== undefined && offset >= shortest) return { offset };
  throw invalid(
    field,
    "must be a time after 2000 (a Date, or 2026-01-31T12:00:00Z) or a duration (90s, P1D)" +
      (shortest < 0 ? "" : ` of at least ${shortest} µs`),
  );
}

/** A copy of the value, which JSON can say. An undefined member is left out, as in all JSON.
 *
 * A value that is in a body twice is in its JSON twice, so a small object may stand for more JSON
 * than there is memory. Each value takes at least a byte: the work ends when there are more of them
 * than bytes allowed. */
export function body(field: string, value: unknown): JSONValue {
  let bytesLeft = MAX_BODY;
  const tooLarge = () => stop("too-large", `\`${field}\` takes more than ${MAX_BODY} bytes of JSON`, field);

  function plain(part: unknown, levels: number): JSONValue {
    if (!bytesLeft--) throw tooLarge();
    switch (typeof part) {
      case "string":
        if (isUnicode(part)) return part;
        throw invalid(field, "holds half of a surrogate pair");
      case "boolean":
        return part;
      case "number":
        if (Number.isFinite(part)) return part;
        break;
      case "bigint":
        if (Number.isSafeInteger(Number(part))) return Number(part);
        if (hasExactIntegers()) return part;
        break;
      case "object":
        if (!part) return null;
        if (!levels) throw invalid(field, `is nested more than ${MAX_DEPTH} levels deep`);
        if (Array.isArray(part)) return Array.from(part, (each) => plain(each, levels - 1));
        if (isPlain(part)) return members(part, levels - 1);
    }
    throw invalid(field, `holds ${typeof part} ${String(part).slice(0, 40)}, which JSON cannot say`);
  }

  const members = (part: object, levels: number): JSONValue =>
    Object.fromEntries(
      Object.entries(part)
        .filter(([, member]) => member !== undefined)
        .map(([name, member]: [string, unknown]) => [plain(name, levels), plain(member, levels)]),
    );

  const copy = plain(value, MAX_DEPTH);
  if (byteLength(encode(copy)) > MAX_BODY) throw tooLarge();
  return copy;
}

/** Whether an object is no instance of a class. (Of another window, it has another Object.) */
function isPlain(value: object): boolean {
  const prototype: unknown = Object.getPrototypeOf(value);
  return !prototype || !Object.getPrototypeOf(prototype);
}
