/**
 * A server in memory, and a clock that stands still, for the tests of apps. Clients are real ones,
 * and speak the real protocol with it; nothing touches a network, and nothing has to be slept for.
 *
 * ```ts
 * const server = new TestServer();
 * const phone = server.device("alice");
 * const gregor = await phone.open();
 * await server.notify("alice", "likes", { title: "Ann liked your photo" });
 * expect(gregor.inbox.unreadCount()).toBe(1);
 * ```
 */

import { GregorError } from "../errors.js";
import type { Topic } from "../inbox.js";
import {
  create,
  dismiss,
  dismissCategory,
  dismissKey,
  outOfBand,
  put,
  type Category,
  type CreateOptions,
  type DeviceID,
  type DismissCategoryOptions,
  type DismissKeyOptions,
  type Item,
  type Key,
  type Message,
  type MsgID,
  type OutOfBandMessage,
  type PutOptions,
  type StoredMessage,
  type UID,
} from "../message.js";
import { notification } from "../notification.js";
import { FakeClock } from "./fake-clock.js";
import { FakeNode, type NodeRules, type Result } from "./fake-node.js";
import { TestDevice } from "./test-device.js";

export type { Result, TestDevice };

/** Numbers that look random, and are the same in each run (mulberry32). */
function randomNumbers(seed: number): () => number {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let mixed = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

export interface TestServerOptions {
  /** What the clock shows at first: 2026-01-01T00:00:00Z, unless given. */
  readonly now?: Date | string;
  /** Whose token this is; undefined if it is nobody's. A token is the user, unless given. */
  readonly identify?: NodeRules["identify"];
  /** Why a message of a device is rejected; undefined if it is not. */
  readonly refuse?: NodeRules["refuse"];
}

/** A server of any number of users and devices. Each method resolves when all devices that are
 * online have heard of it. */
export class TestServer {
  private readonly _clock: FakeClock;
  protected readonly _node: FakeNode;
  private readonly _random = randomNumbers(1);

  constructor({ now = "2026-01-01T00:00:00Z", identify, refuse }: TestServerOptions = {}) {
    this._clock = new FakeClock(new Date(now).getTime());
    this._node = new FakeNode({
      now: () => this._clock.now * 1_000,
      identify: identify ?? ((token) => token),
      refuse: refuse ?? (() => undefined),
    });
  }

  /** A device of a user, which is online and has an empty store. */
  device(user: UID, deviceId: DeviceID = "phone"): TestDevice {
    return new TestDevice(user, deviceId, this._clock, this._node, this._random);
  }

  // Time

  /** What the clock shows, for this server and all devices. */
  get now(): Date {
    return new Date(this._clock.now);
  }

  /** Lets so many milliseconds pass, with all that happens in them. */
  async advance(ms: number): Promise<void> {
    await this._clock.advance(ms);
  }

  /** Waits until everything has happened that waits for no time. */
  async settled(): Promise<void> {
    await this._clock.advance(0);
  }

  // What a backend does

  /** Stores a message, or sends an out-of-band one. Throws the error if it is rejected. */
  async inject(message: Message | OutOfBandMessage): Promise<Result> {
    const result =
      "system" in message ? this._node.relay(message) : this._node.consume(message.uid, message);
    await this.settled();
    if (result.error) throw new GregorError(result.error);
    return result;
  }

  create(user: UID, category: Category, body?: unknown, options?: CreateOptions): Promise<Result> {
    return this.inject(create(user, category, body, options));
  }

  put(user: UID, category: Category, body?: unknown, options?: PutOptions): Promise<Result> {
    return this.inject(put(user, category, body, options));
  }

  dismiss(user: UID, ...msgIds: MsgID[]): Promise<Result> {
    return this.inject(dismiss(user, msgIds));
  }

  dismissKey(user: UID, keys: Key | readonly Key[], options?: DismissKeyOptions): Promise<Result> {
    return this.inject(dismissKey(user, [keys].flat(), options));
  }

  dismissCategory(user: UID, category: Category, options?: DismissCategoryOptions): Promise<Result> {
    return this.inject(dismissCategory(user, category, options));
  }

  outOfBand(user: UID, system: string, body?: unknown): Promise<Result> {
    return this.inject(outOfBand(user, system, body));
  }

  /** Sends a notification, which an inbox shows as unread. */
  async notify(user: UID, topic: Topic, body: unknown, options?: PutOptions): Promise<Result> {
    const [item, marker] = notification(user, topic, body, options);
    const result = await this.inject(item);
    await this.inject(marker);
    return result;
  }

  /** Erases a user: all that is stored here and on the user's devices. */
  async erase(user: UID): Promise<void> {
    this._node.erase(user);
    await this.settled();
  }

  // What a test looks at

  /** What the server shows of a user now; with a device, what that device would show. */
  items(user: UID, deviceId?: DeviceID): readonly Item[] {
    return this._node.user(user).visible(deviceId, this._clock.now * 1_000);
  }

  /** All messages that were stored for a user, in order. */
  messages(user: UID): readonly StoredMessage[] {
    return [...this._node.user(user).messages.values()];
  }
}
