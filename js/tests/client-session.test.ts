import fc from "fast-check";
import { expect, test } from "vitest";
import { clientSession } from "../src/client-session.js";
import { vectors } from "./vectors/files.js";
import { SessionRun, type SessionCase } from "./vectors/session-run.js";

const { cases } = vectors("session") as { cases: readonly SessionCase[] };
const aCase = fc.constantFrom(...cases);
const MALFORMED = [{ malformed: {} }];

/** Every frame of the vectors, as JSON. */
const frames = cases
  .flatMap(({ steps }) => steps)
  .filter((step) => step.in.frame instanceof Object && JSON.stringify(step.out) !== JSON.stringify(MALFORMED))
  .map((step) => JSON.stringify(step.in.frame));

/** A frame in which one value, at any depth, is another. */
const damaged = fc
  .tuple(fc.constantFrom(...frames), fc.nat(), fc.jsonValue())
  .map(([frame, place, other]) => {
    const root = { frame: JSON.parse(frame) as unknown };
    const places = placesIn(root);
    const [holder, name] = places[place % places.length] as Place;
    holder[name] = other;
    return JSON.stringify(root.frame);
  });

type Place = readonly [holder: Record<string, unknown>, name: string];

const placesIn = (value: object): Place[] =>
  Object.entries(value).flatMap(([name, part]: [string, unknown]) => [
    [value as Record<string, unknown>, name],
    ...(part instanceof Object ? placesIn(part) : []),
  ]);

test("whatever arrives, a session takes it or says that it is malformed", () => {
  const text = fc.oneof(fc.string(), fc.json(), damaged);
  fc.assert(
    fc.property(fc.array(text, { maxLength: 20 }), (texts) => {
      const run = new SessionRun();
      run.feed({ connected: { token: "t", device_id: "phone", cursor: 10 } });
      for (const frame of texts) expect(run.feed({ frame })).toBeInstanceOf(Array);
    }),
    { numRuns: 500 },
  );
});

test("a malformed frame changes nothing", () => {
  fc.assert(
    fc.property(aCase, fc.array(damaged, { minLength: 40, maxLength: 40 }), ({ steps }, bad) => {
      const run = new SessionRun();
      for (const [place, step] of steps.entries()) {
        // Only those that are malformed in themselves, whatever the session knows.
        const frame = bad[place % bad.length] ?? "";
        if (isMalformed(frame)) expect(run.feed({ frame })).toEqual(place ? MALFORMED : []);
        expect(run.feed(step.in)).toStrictEqual(step.out);
        if (step.in.disconnected) return;
      }
    }),
  );
});

function isMalformed(frame: string): boolean {
  const run = new SessionRun();
  run.feed({ connected: { token: "t", device_id: "phone", cursor: 10 } });
  return JSON.stringify(run.feed({ frame })) === JSON.stringify(MALFORMED);
}

test("unknown fields, at any depth outside of a body, change nothing", () => {
  fc.assert(
    fc.property(aCase, fc.jsonValue(), ({ steps }, value) => {
      const run = new SessionRun();
      for (const step of steps) {
        const { frame } = step.in;
        const given = frame instanceof Object ? { ...step.in, frame: withField(frame, value) } : step.in;
        expect(run.feed(given)).toStrictEqual(step.out);
      }
    }),
  );
});

/** The value with one more field in each object. */
function withField(value: unknown, added: unknown): unknown {
  if (Array.isArray(value)) return value.map((each) => withField(each, added));
  if (!(value instanceof Object)) return value;
  const fields = Object.entries(value).map(([name, part]: [string, unknown]) => [
    name,
    name === "body" ? part : withField(part, added),
  ]);
  return { ...Object.fromEntries(fields), "a later field": added };
}

test.each([
  ["welcome", { type: "welcome", uid: "bob", device_id: "phone", now: 1, limits: {}, epoch: 50 }],
  ["erased", { type: "erased", epoch: 50, uid: "bob" }],
])("%s of another user is reported, and erases nothing", (_, frame) => {
  const session = clientSession({ token: "t", deviceId: "phone", cursor: 10, epoch: 0, uid: "alice" });
  const [effect, ...others] = session.receive(JSON.stringify(frame));
  expect(effect).toMatchObject({ type: "failed", error: { code: "forbidden", action: "stop" } });
  expect(others).toEqual([]);
  expect(session.disconnected(4010)).toEqual([]);
  expect(session.epoch).toBe(0);
});

test("an ack with too few results is malformed, and the consume stays in flight", () => {
  const session = clientSession({ token: "t", deviceId: "phone", cursor: 10 });
  const limits = {};
  session.receive(JSON.stringify({ type: "welcome", uid: "a", now: 1, limits }));
  const message = { uid: "a", msg_id: "m", dismissal: { msg_ids: ["x"] } };
  session.consume([message, { ...message, msg_id: "n" }]);
  const ack = (...results: object[]) => JSON.stringify({ type: "ack", n: 1, results });
  expect(() => session.receive(ack({ status: "stored" }))).toThrow(
    expect.objectContaining({ code: "malformed", field: "results" }),
  );
  expect(session.mayConsume).toBe(false);
  expect(session.receive(ack({ status: "stored" }, { status: "stored" }))).toMatchObject([
    { type: "acked" },
  ]);
  expect(session.mayConsume).toBe(true);
});

test("a node of a version without epochs gets a hello without one", () => {
  const options = { token: "t", deviceId: "phone", cursor: 10, epoch: 5 };
  const hello = (withoutEpoch: boolean) => JSON.stringify(clientSession({ ...options, withoutEpoch }).opened());
  expect(hello(false)).toContain("epoch");
  expect(hello(true)).not.toContain("epoch");
});
