import fc from "fast-check";
import { afterEach, expect, test, vi } from "vitest";
import { canonical, decode, encode, hasExactIntegers } from "../src/json.js";
import { create } from "../src/message.js";
import { decodeNodeFrame } from "../src/frames.js";

const HUGE = 2n ** 53n + 1n;

afterEach(() => vi.unstubAllGlobals());

test("an integer above 2^53 is the nearest number, unless exact ones are wanted", () => {
  const json = `{"id": ${HUGE}, "list": [-${HUGE}, 9007199254740991, 1.5, 1e300, "${HUGE}"]}`;
  expect(decode(json)).toEqual({
    id: 2 ** 53,
    list: [-(2 ** 53), 9007199254740991, 1.5, 1e300, "9007199254740993"],
  });
  expect(decode(json, true)).toEqual({
    id: HUGE,
    list: [-HUGE, 9007199254740991, 1.5, 1e300, "9007199254740993"],
  });
});

test("any integer of a body passes exactly from device to device", () => {
  fc.assert(
    fc.property(fc.bigInt(), (integer) => {
      const body = { integer };
      const { creation } = create("alice", "chat", body);
      const read = decodeNodeFrame(
        encode({ type: "out_of_band", system: "s", body: creation?.body }),
        true,
      );
      expect(read).toEqual({ type: "out_of_band", system: "s", body: creation?.body });
      expect(encode(creation?.body)).toBe(`{"integer":${integer}}`);
    }),
  );
});

test("a body without bigints has none, whatever its numbers are", () => {
  const body = { large: 2 ** 60, small: 1 };
  expect(create("alice", "chat", body).creation?.body).toEqual(body);
});

test("a browser without exact integers says so, and refuses to write a bigint", () => {
  expect(hasExactIntegers()).toBe(true);
  vi.stubGlobal("JSON", { parse: JSON.parse, stringify: JSON.stringify });
  expect(hasExactIntegers()).toBe(false);
  expect(() => create("alice", "chat", [1n])).toThrow(/BigInt/);
});

test("canonical JSON is equal for equal values, and only for these", () => {
  const shuffled = (value: unknown): unknown => {
    if (Array.isArray(value)) return value.map(shuffled);
    if (!(value instanceof Object)) return value;
    const members = Object.entries(value).map(([name, part]) => [name, shuffled(part)] as const);
    return Object.fromEntries(members.toReversed());
  };
  fc.assert(
    fc.property(fc.jsonValue(), fc.jsonValue(), (value, other) => {
      expect(canonical(shuffled(value))).toBe(canonical(value));
      expect(decode(canonical(value))).toEqual(JSON.parse(JSON.stringify(value)));
      const isEqual = canonical(value) === canonical(other);
      if (isEqual) expect(JSON.parse(JSON.stringify(other))).toEqual(JSON.parse(JSON.stringify(value)));
    }),
  );
});
