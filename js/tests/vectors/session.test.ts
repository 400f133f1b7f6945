import { expect, test } from "vitest";
import { ClientSession, type Effect } from "../../src/client-session.js";
import { ReconnectPolicy } from "../../src/reconnect.js";
import { vectors, type Case } from "./files.js";

const { cases } = vectors("session") as { cases: readonly Case[] };

test.each(cases)("$name", ({ steps }) => {
  const feed = sessionUnderTest();
  for (const step of steps) expect(feed(step.in)).toStrictEqual(step.out);
});

/** A session, and the reconnect policy beside it: takes an input, and returns the effects, both as
 * section 11 of spec/protocol.md describes them. */
function sessionUnderTest(): (given: Case["steps"][number]["in"]) => unknown {
  const policy = new ReconnectPolicy();
  let session: ClientSession | undefined;

  function carryOut(given: Case["steps"][number]["in"]): unknown[] {
    const [name, value] = Object.entries(given)[0] ?? [];
    switch (name) {
      case "connected":
        session = new ClientSession({ ...value, deviceId: value.device_id });
        return session.opened().map(plain);
      case "disconnected": {
        const { now, random, retry_after = 0, code = 1006 } = value;
        const effects = session?.disconnected(code).map(plain) ?? [];
        session = undefined;
        const seconds = policy.wait(now, random, retry_after);
        return [...effects, { wait: { seconds: Math.round(seconds * 1e6) / 1e6 } }];
      }
      case "synced":
        policy.synced();
        return [];
      case "frame":
        return receive(value, given);
      case "consume":
        return current().consume(value.messages.map((message: object) => ({ uid: "alice", ...message }))).map(plain);
      case "verify":
        return current().verify(value.cursor).map(plain);
      case "compared":
        return current().hashCompared(value.equal).map(plain);
      default:
        throw new Error(`not an input: ${name}`);
    }
  }

  function receive(frame: any, { now, random }: Case["steps"][number]["in"]): unknown[] {
    try {
      const effects = current().receive(typeof frame === "string" ? frame : JSON.stringify(frame));
      if (frame.type === "goaway") policy.goaway(now, random, frame.reconnect_after_ms);
      return effects.map(plain);
    } catch (error) {
      expect(error).toMatchObject({ code: "malformed" });
      return [{ malformed: {} }];
    }
  }

  function current(): ClientSession {
    if (!session) throw new Error("the case has no connection");
    return session;
  }
  return carryOut;
}

/** An effect as the vectors write it. */
function plain({ type, ...parts }: Effect): unknown {
  if ("frame" in parts) return { [type]: parts.frame };
  if ("error" in parts) return { [type]: parts.error };
  if ("limits" in parts) {
    const { limits, ...rest } = parts;
    return { [type]: { ...rest, messages: limits.messages } };
  }
  return { [type]: parts };
}
