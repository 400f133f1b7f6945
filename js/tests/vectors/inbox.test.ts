import { expect, test } from "vitest";
import { GregorError } from "../../src/errors.js";
import { inboxOf, type Undo } from "../../src/inbox.js";
import type { Time } from "../../src/instant.js";
import type { Item, Message } from "../../src/message.js";
import { validFields } from "../../src/notification-body.js";
import { notification } from "../../src/notification.js";
import { Replica } from "../../src/replica.js";
import { vectors, type Case } from "./files.js";

const { cases } = vectors("inbox") as { cases: readonly Case[] };

test.each(cases)("$name", async ({ steps }) => {
  const run = new InboxRun();
  for (const { in: given, out } of steps) expect(await run.feed(given)).toStrictEqual(out);
});

/** Names of options of the app, by those of the vectors. */
const FIELDS: Readonly<Record<string, string>> = { msgId: "msg_id", deviceId: "device_id" };

const errorOf = (error: unknown): unknown => {
  if (!(error instanceof GregorError)) throw error;
  return { error: FIELDS[error.field ?? ""] ?? error.field };
};

/** The inbox of one device under test, which has no store, no connection and no events. */
class InboxRun {
  readonly user = "alice";
  readonly deviceId = "phone";
  readonly replica = Replica.load(new Map(), "phone");
  private readonly _inbox = inboxOf(this);
  private readonly _names = new Map<string, string>();
  private readonly _undos: (Undo | undefined)[] = [];
  private _now: Time = 0;

  // What an inbox needs of a client

  state() {
    return this.replica.state(this._now);
  }

  async change<T>(operation: (replica: Replica, now: Time) => T): Promise<T> {
    return operation(this.replica, this._now);
  }

  // The inputs and outputs of the vectors

  /** The output after one input, as section 7 of spec/inbox.md describes it. */
  async feed({ now, ...given }: Case["steps"][number]["in"]): Promise<unknown> {
    this._now = now;
    const place = this._undos.push(undefined) - 1;
    const [[name, value] = []] = Object.entries(given);
    try {
      switch (name) {
        case "body":
          return { fields: validFields(value) };
        case "notify":
          return { messages: this._notification(value) };
      }
      this._undos[place] = await this._carryOut(name, value);
      return { written: this._written(), ...this._shown(name === "list" ? value : {}) };
    } catch (error) {
      return errorOf(error);
    }
  }

  private _notification({ uid, topic, body, device_id, msg_id, ...options }: any): readonly Message[] {
    return notification(uid, topic, body, { ...options, deviceId: device_id, msgId: msg_id });
  }

  private async _carryOut(name: string | undefined, value: any): Promise<Undo | undefined> {
    switch (name) {
      case "told":
        await this.change((replica) => replica.applySnapshot(value.items as Item[], value.cursor));
        return undefined;
      case "list":
        return undefined;
      case "read":
        return this._inbox.read(...value);
      case "unread":
        await this._inbox.unread(...value);
        return undefined;
      case "archive":
        return this._inbox.archive(...value);
      case "read_all":
        return this._inbox.readAll(value.topic);
      case "snooze":
        return this._inbox.snooze(value.key, value.until);
      case "undo":
        await this._inbox.undo(this._undos[value] ?? { items: [], written: [] });
        return undefined;
      default:
        throw new Error(`not an input: ${name}`);
    }
  }

  private _shown({ topic, limit }: { topic?: string; limit?: number }): object {
    return {
      entries: this._inbox.list(topic, { limit }).map(({ key, unread }) => [key, unread]),
      unread: this._inbox.unreadCount(topic),
      by_topic: Object.fromEntries(this._inbox.unreadByTopic()),
    };
  }

  /** The messages that are new in the outbox, with names for their random ids. */
  private _written(): unknown[] {
    const written = this.replica.unsent().filter(({ msg_id }) => !this._names.has(msg_id));
    for (const { msg_id } of written) this._names.set(msg_id, `#${this._names.size + 1}`);
    return written.map((message) => this._named(message));
  }

  private _named({ uid: _, ...message }: Message): unknown {
    const text = JSON.stringify(message, (_, part: unknown) =>
      typeof part === "string" ? (this._names.get(part) ?? part) : part,
    );
    return JSON.parse(text);
  }
}
