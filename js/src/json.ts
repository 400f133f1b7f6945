/**
 * JSON with exact integers.
 *
 * A number of JavaScript is exact up to 2^53; JSON has no such limit, and other languages write
 * larger integers into bodies. They become the nearest number, unless an app asks for exact ones:
 * then each is a bigint. A bigint is written as the integer that it is.
 */

declare global {
  interface JSON {
    /** Not in all browsers yet. Those that have it also give revivers the source of a number. */
    rawJSON: ((text: string) => unknown) | undefined;
  }
}

/** What JSON can say. */
export type JSONValue =
  | null
  | boolean
  | number
  | bigint
  | string
  | readonly JSONValue[]
  | { readonly [name: string]: JSONValue };

/** Whether this browser can read and write exact integers. */
export const hasExactIntegers = (): boolean => !!JSON.rawJSON;

/** What JSON.stringify writes for this part of a value: the replacer of every call of it. A bigint is
 * refused where there is no JSON.rawJSON. */
export const written = (_: string, part: unknown): unknown =>
  typeof part === "bigint" && JSON.rawJSON ? JSON.rawJSON(`${part}`) : part;

/** The value as JSON. It must be one that JSON can say. */
export const encode = (value: unknown): string => JSON.stringify(value, written);

/** The value of the JSON. Throws SyntaxError if it is none. */
export const decode = (json: string, exactIntegers?: boolean): unknown =>
  JSON.parse(json, exactIntegers ? exact : undefined);

const exact = (_: string, value: unknown, { source = "" }: { source?: string } = {}): unknown =>
  typeof value === "number" && !Number.isSafeInteger(value) && /^-?\d+$/.test(source)
    ? BigInt(source)
    : value;

/** JSON that is equal for equal values: members are in the order of their names. */
export const canonical = (value: unknown): string =>
  JSON.stringify(value, (name, part: unknown) =>
    part && typeof part === "object" && !Array.isArray(part)
      ? Object.fromEntries(Object.entries(part).sort(([a], [b]) => (a < b ? -1 : 1)))
      : written(name, part),
  );

type Absent<T> = { [Name in keyof T]: undefined extends T[Name] ? Name : never }[keyof T];

/** The object without its undefined parts. */
export const present = <T extends object>(
  parts: T,
): Omit<T, Absent<T>> & { [Name in Absent<T>]?: Exclude<T[Name], undefined> } =>
  Object.fromEntries(Object.entries(parts).filter(([, part]) => part !== undefined)) as T;
