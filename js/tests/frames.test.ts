import { expect, test } from "vitest";
import { decodeNodeFrame } from "../src/frames.js";

const text = "text";
const time = 1_767_225_600_000_000;
const range = { category: text, end_time: { time }, skip_msg_ids: [text], prefix: true, scheduled: true };
const message = {
  uid: text,
  msg_id: text,
  ctime: time,
  prev: time,
  device_id: text,
  creation: { category: text, body: text, expires: { offset: -1 }, starts: { time }, key: text },
  dismissal: { msg_ids: [text], ranges: [range], keys: [{ key: text, end_time: { offset: 1 } }] },
};
const item = {
  msg_id: text,
  ctime: time,
  category: text,
  body: null,
  device_id: text,
  expires_at: time,
  starts_at: time,
  key: text,
};
const problem = { code: text, message: text, action: "retry", field: text };

/** Each frame with all of its fields that a device knows. */
const FRAMES = [
  { type: "welcome", uid: text, now: time, limits: { messages: 1 }, epoch: time },
  {
    type: "sync",
    mode: "changes",
    prev: time,
    cursor: time,
    as_of: time,
    hash: text,
    more: true,
    messages: [message],
    items: [item],
  },
  { type: "messages", prev: time, messages: [message], cursor: time },
  { type: "out_of_band", system: text, body: [text] },
  {
    type: "ack",
    n: 1,
    results: [
      { status: "rejected", uid: text, msg_id: text, ctime: time, error: { ...problem, epoch: time } },
    ],
  },
  { type: "error", ...problem, n: 1 },
  { type: "goaway", reconnect_after_ms: 1 },
  { type: "erased", epoch: time, uid: text },
];

/** Each frame with the fields that it needs only. */
const LEAST_FRAMES = [
  { type: "welcome", uid: text, now: time, limits: {} },
  { type: "sync", mode: "snapshot", prev: 0, cursor: time, as_of: time, hash: text },
  {
    type: "sync",
    mode: "snapshot",
    prev: 0,
    cursor: time,
    as_of: time,
    hash: text,
    items: [{ msg_id: text, ctime: time, category: text, body: null }],
  },
  {
    type: "messages",
    prev: time,
    messages: [
      { uid: text, msg_id: text, ctime: time, creation: { category: text, body: null } },
      { uid: text, msg_id: text, ctime: time, dismissal: { ranges: [{ category: text }] } },
      { uid: text, msg_id: text, ctime: time, dismissal: { keys: [{ key: text }] } },
    ],
    cursor: time,
  },
  { type: "out_of_band", system: text, body: null },
  {
    type: "ack",
    n: 1,
    results: [{ status: "rejected", error: { code: text, message: text, action: "stop" } }],
  },
  { type: "error", code: text, message: text, action: "stop" },
  { type: "goaway", reconnect_after_ms: 1 },
  { type: "erased", epoch: time },
];
const PARTS_THAT_MAY_BE_MISSING = ["items", "creation", "dismissal", "ranges", "keys", "error"];

type Json = Record<string, unknown>;

/** What comes of the frame if one of its fields, at any depth outside of a body, is changed. */
const changed = (frame: object, change: (holder: Json, name: string) => void) => {
  const paths = (value: unknown, path: readonly string[]): (readonly string[])[] =>
    value instanceof Object && path.at(-1) !== "body"
      ? Object.entries(value).flatMap(([name, part]) => [
          [...path, name],
          ...paths(part, [...path, name]),
        ])
      : [];
  return paths(frame, []).map((path) => {
    const copy = structuredClone(frame);
    const name = path.at(-1) ?? "";
    const holder = path.slice(0, -1).reduce((value, part) => value[part] as Json, copy as Json);
    change(holder, name);
    return { path: path.join("."), name, json: JSON.stringify(copy) };
  });
};

test.each([...FRAMES, ...LEAST_FRAMES])("a frame $type is read as it is sent", (frame) => {
  expect(decodeNodeFrame(JSON.stringify(frame))).toStrictEqual(frame);
});

test.each(FRAMES)("a frame $type with a field of the wrong type is malformed", (frame) => {
  const damaged = changed(frame, (holder, name) => {
    holder[name] = typeof holder[name] === "string" ? 7 : "7";
  });
  for (const { path, name, json } of damaged) {
    if (name === "body") continue;
    expect(() => decodeNodeFrame(json), path).toThrow(
      expect.objectContaining({ code: "malformed", action: "stop" }),
    );
  }
});

test.each(LEAST_FRAMES)("a frame $type without a field that it needs is malformed", (frame) => {
  for (const { path, name, json } of changed(frame, (holder, name) => delete holder[name])) {
    if (PARTS_THAT_MAY_BE_MISSING.includes(name) || /^\d+$/.test(name)) continue;
    expect(() => decodeNodeFrame(json), path).toThrow(
      expect.objectContaining({ code: "malformed", field: name }),
    );
  }
});

test.each(FRAMES)("null in a frame $type stands for a field that is missing", (frame) => {
  for (const { path, name, json } of changed(frame, (holder, name) => (holder[name] = null))) {
    const [missing] = changed(frame, (holder, each) => each === name && delete holder[name]).filter(
      (other) => other.path === path,
    );
    if (name === "body" || /\d/.test(name)) continue;
    expect(outcomeOf(json), path).toEqual(outcomeOf(missing?.json ?? ""));
  }
});

function outcomeOf(json: string): unknown {
  try {
    return decodeNodeFrame(json);
  } catch (error) {
    return error;
  }
}

test.each([
  ["a time before 1970", { type: "erased", epoch: -1 }],
  ["a time that is no integer", { type: "erased", epoch: 0.5 }],
  ["a time that no number can hold", { type: "erased", epoch: 2 ** 53 }],
  ["no kind of sync", { ...FRAMES[1], mode: "all" }],
  ["no action", { ...FRAMES[5], action: "panic" }],
  ["an array as an object", { type: "welcome", uid: text, now: time, limits: [] }],
])("%s is malformed", (_, frame) => {
  expect(() => decodeNodeFrame(JSON.stringify(frame))).toThrow(
    expect.objectContaining({ code: "malformed" }),
  );
});

test.each(["", "null", "[]", "7", '{"type": "erased"', "<!doctype html><title>Log in</title>"])(
  "%s is no frame",
  (text) => {
    expect(() => decodeNodeFrame(text)).toThrow(expect.objectContaining({ code: "malformed" }));
  },
);

test.each(["renewed", "constructor", "__proto__", "toString"])(
  "a frame of the unknown type %s is ignored",
  (type) => {
    expect(decodeNodeFrame(`{"type": "${type}"}`)).toBeUndefined();
  },
);

test("a message of which nothing is left is ignored", () => {
  const left = { uid: text, msg_id: text, ctime: time };
  const messages = [left, { ...left, dismissal: {} }, { ...left, dismissal: { msg_ids: [] } }, message];
  const frame = JSON.stringify({ type: "messages", prev: 0, cursor: time, messages });
  expect(decodeNodeFrame(frame)).toMatchObject({ messages: [message] });
});

test("a body is the app's: nothing in it is unknown", () => {
  const json = `{"type": "out_of_band", "system": "s", "body": {"__proto__": {"x": 1}, "null": null}}`;
  expect(JSON.stringify(decodeNodeFrame(json))).toBe(
    '{"type":"out_of_band","system":"s","body":{"__proto__":{"x":1},"null":null}}',
  );
});
