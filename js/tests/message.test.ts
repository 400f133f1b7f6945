import fc from "fast-check";
import { expect, test } from "vitest";
import * as message from "../src/message.js";
import { byteCompare, newMsgId } from "../src/message.js";

const unicode = fc.string({ unit: "binary" });
const loneSurrogate = fc
  .tuple(unicode, fc.integer({ min: 0xd800, max: 0xdfff }), unicode)
  .map(([before, unit, after]) => `${before}-${String.fromCharCode(unit)}-${after}`);

test("each message holds what the app wrote, under the names of the protocol", () => {
  const options = { msgId: "m", deviceId: "phone" };
  expect(message.create("alice", "chat", { n: 1 }, { ...options, expires: "1h" })).toStrictEqual({
    uid: "alice",
    msg_id: "m",
    device_id: "phone",
    creation: { category: "chat", body: { n: 1 }, expires: { offset: 3_600_000_000 } },
  });
  expect(message.put("alice", "theme", "dark", { msgId: "m" })).toStrictEqual({
    uid: "alice",
    msg_id: "m",
    creation: { category: "theme", body: "dark", key: "theme" },
  });
  expect(message.put("alice", "theme", "dark", { msgId: "m", key: "k", starts: "0s" })).toStrictEqual({
    uid: "alice",
    msg_id: "m",
    creation: { category: "theme", body: "dark", key: "k", starts: { offset: 0 } },
  });
  expect(message.dismiss("alice", ["a", "."], { msgId: "m" })).toStrictEqual({
    uid: "alice",
    msg_id: "m",
    dismissal: { msg_ids: ["a", "."] },
  });
  const range = { prefix: true, scheduled: false, endTime: "-1m", skipMsgIds: ["a"] };
  expect(message.dismissCategory("alice", "chat.", { ...range, msgId: "m" })).toStrictEqual({
    uid: "alice",
    msg_id: "m",
    dismissal: {
      ranges: [
        {
          category: "chat.",
          end_time: { offset: -60_000_000 },
          skip_msg_ids: ["a"],
          prefix: true,
          scheduled: false,
        },
      ],
    },
  });
  expect(message.dismissKey("alice", ["k", "l"], { msgId: "m", endTime: "0s" })).toStrictEqual({
    uid: "alice",
    msg_id: "m",
    dismissal: {
      keys: [
        { key: "k", end_time: { offset: 0 } },
        { key: "l", end_time: { offset: 0 } },
      ],
    },
  });
  expect(message.outOfBand("alice", "typing")).toStrictEqual({
    uid: "alice",
    system: "typing",
    body: null,
  });
});

/** Calls as JavaScript without types may make them. */
const untyped = message as unknown as Readonly<Record<string, (...given: unknown[]) => unknown>>;

test.each([
  ["category", "create", ["alice", ""]],
  ["category", "create", ["alice", 7]],
  ["category", "put", ["alice", undefined, 1, { key: "k" }]],
  ["category", "create", ["alice", "x".repeat(256)]],
  ["category", "create", ["alice", "é".repeat(128)]],
  ["category", "create", ["alice", "a\0b"]],
  ["category", "create", ["alice", "half of \ud83d"]],
  ["category", "dismissCategory", ["alice", null]],
  ["body", "create", ["alice", "chat", () => 1]],
  ["body", "create", ["alice", "chat", Symbol("s")]],
  ["body", "create", ["alice", "chat", "half of \udc00"]],
  ["body", "create", ["alice", "chat", { "half of \ud83d": 1 }]],
  ["body", "outOfBand", ["alice", "typing", ["\\\ud83d"]]],
  ["key", "put", ["alice", "chat", 1, { key: "" }]],
  ["expires", "create", ["alice", "chat", 1, { expires: 60 }]],
  ["expires", "create", ["alice", "chat", 1, { expires: "1ms" }]],
  ["starts", "create", ["alice", "chat", 1, { starts: "-1h" }]],
  ["msgId", "create", ["alice", "chat", 1, { msgId: "." }]],
  ["msgId", "create", ["alice", "chat", 1, { msgId: 7 }]],
  ["msgId", "create", ["alice", "chat", 1, { msgId: "x".repeat(65) }]],
  ["deviceId", "create", ["alice", "chat", 1, { deviceId: ".." }]],
  ["msgIds", "dismiss", ["alice", []]],
  ["msgIds", "dismiss", ["alice", "m1"]],
  ["msgIds", "dismiss", ["alice", [["m1"]]]],
  ["keys", "dismissKey", ["alice", []]],
  ["keys", "dismissKey", ["alice", [7]]],
  ["endTime", "dismissKey", ["alice", ["k"], { endTime: 0 }]],
  ["endTime", "dismissCategory", ["alice", "chat", { endTime: "yesterday" }]],
  ["skipMsgIds", "dismissCategory", ["alice", "chat", { skipMsgIds: "m1" }]],
  ["system", "outOfBand", ["alice", ""]],
])("%s is named by the error of %s for %j", (field, name, args) => {
  expect(() => untyped[name]?.(...args)).toThrow(
    expect.objectContaining({ name: "GregorError", code: "invalid", action: "stop", field }),
  );
});

test("text with half of a surrogate pair is refused, wherever it stands", () => {
  fc.assert(
    fc.property(loneSurrogate, (text) => {
      const invalid = expect.objectContaining({ code: "invalid" });
      expect(() => message.put("alice", text)).toThrow(invalid);
      expect(() => message.put("alice", "chat", 1, { key: text })).toThrow(invalid);
      expect(() => message.put("alice", "chat", [text])).toThrow(invalid);
      expect(() => message.put("alice", "chat", { [text]: 1 })).toThrow(invalid);
      expect(() => message.dismiss("alice", [text])).toThrow(invalid);
    }),
  );
});

test("a body is a copy of what JSON says", () => {
  fc.assert(
    fc.property(fc.jsonValue({ stringUnit: "binary" }), (value) => {
      const { creation } = message.create("alice", "chat", value);
      expect(creation?.body).toEqual(JSON.parse(JSON.stringify(value)));
    }),
  );
  const body = { list: [1], at: new Date(0), none: undefined, nan: NaN };
  const { creation } = message.create("alice", "chat", body);
  body.list.push(2);
  expect(creation?.body).toStrictEqual({ list: [1], at: "1970-01-01T00:00:00.000Z", nan: null });
});

test.each(["\\ud83d", "\\\\ud83d", "\ud83d\ude00", "\0"])("a body may hold the text %j", (text) => {
  expect(message.create("alice", "chat", text).creation?.body).toBe(text);
});

test("a body of 64 KiB is the largest, in bytes of UTF-8", () => {
  const most = "é".repeat(32 * 1024 - 1);
  expect(message.create("alice", "chat", most).creation?.body).toBe(most);
  expect(() => message.create("alice", "chat", `${most}é`)).toThrow(
    expect.objectContaining({ code: "too-large", field: "body" }),
  );
});

test("ids are 32 random hex digits", () => {
  const ids = Array.from({ length: 1000 }, newMsgId);
  for (const id of ids) expect(id).toMatch(/^[0-9a-f]{32}$/);
  expect(new Set(ids).size).toBe(1000);
});

test("text is compared as its UTF-8", () => {
  // Characters around those where the order of UTF-16 differs.
  const unit = fc.constantFrom("a", "b", "\0", "\u00e9", "\ud7ff", "\ue000", "\uffff", "\u{10000}", "\u{10ffff}");
  const text = fc.oneof(fc.string({ unit, maxLength: 5 }), fc.string({ unit: "binary", maxLength: 5 }));
  fc.assert(
    fc.property(text, text, (a, b) => {
      expect(Math.sign(byteCompare(a, b))).toBe(Buffer.compare(Buffer.from(a), Buffer.from(b)));
    }),
    { numRuns: 2000 },
  );
});
