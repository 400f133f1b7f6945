/**
 * One node with its store, in memory: it speaks the protocol with devices, and keeps what they and
 * the test write. It is a whole node but for what a test does not need: it knows one way to bring a
 * device up to date, which is a snapshot, and forgets nothing.
 */

import { invalid, stop, type GregorError, type Problem } from "../errors.js";
import { Facts } from "../facts.js";
import { after, type Time } from "../instant.js";
import { canonical, present } from "../json.js";
import {
  type DeviceID,
  type Item,
  type Message,
  type MsgID,
  type OutOfBandMessage,
  type StoredMessage,
  type UID,
} from "../message.js";
import { State } from "../state.js";
import { entryHash, hashText } from "../state-hash.js";
import { hasExpired, isLive, isVisible, seenOn } from "../visibility.js";

/** What became of a message, as an `ack` says it. */
export interface Result {
  readonly status: "stored" | "duplicate" | "rejected" | "relayed";
  readonly uid: UID;
  readonly msg_id?: MsgID;
  readonly ctime?: Time;
  readonly visible?: boolean;
  readonly starts_at?: Time;
  readonly expires_at?: Time;
  readonly dismissed?: number;
  readonly replaced?: MsgID;
  readonly error?: Problem;
}

/** What a test decides for the node. */
export interface NodeRules {
  /** The time in microseconds. */
  now(): Time;
  /** Whose token this is; undefined if it is nobody's. */
  identify(token: string): UID | undefined;
  /** Why a message of a device is rejected; undefined if it is not. */
  refuse(message: Message): string | undefined;
}

/** A frame as it is sent. */
export interface Frame {
  readonly type: string;
  readonly [field: string]: unknown;
}

/** The node's end of a connection. */
export interface Peer {
  send(frame: Frame): void;
  /** Ends the connection, after what was sent before. */
  close(code: number, reason: string): void;
}

/** Clocks of nodes and devices differ by less. */
const EXPIRY_GRACE = 60_000_000;

const LIMITS = {
  messages: 500,
  message_bytes: 524_288,
  body_bytes: 65_536,
  frame_bytes: 1_048_576,
};

/** What is stored of one user. */
class StoredUser {
  readonly facts = new Facts();
  readonly messages = new Map<MsgID, StoredMessage>();
  /** The msg_id of the last item with a key, by key and scope. */
  readonly latest = new Map<string, MsgID>();

  constructor(
    readonly uid: UID,
    public clock: Time = 0,
    readonly epoch: Time = 0,
  ) {}

  /** What a device has, begun or not, and what expired less than a minute ago. */
  sentTo(deviceId: DeviceID, now: Time): Item[] {
    const items = [...this.facts.items.values()];
    return items.filter((item) => isLive(item, deviceId, now - EXPIRY_GRACE)).sort((a, b) => a.ctime - b.ctime);
  }

  /** What a device shows; without one, what all show. */
  visible(deviceId: DeviceID | undefined, now: Time): readonly Item[] {
    const items = [...this.facts.items.values()];
    return new State(items.filter((item) => isVisible(item, deviceId, now)), now).items;
  }

  hash(deviceId: DeviceID, now: Time): string {
    const live = this.sentTo(deviceId, now).filter((item) => !hasExpired(item, now));
    return hashText(live.reduce((sum, item) => sum + entryHash(item.ctime, item.msg_id), 0n));
  }

  /** Stores a message that is new. */
  store(message: Message, now: Time): { readonly message: StoredMessage; readonly result: Result } {
    const { msg_id, device_id, creation } = message;
    const stored = { ...message, uid: this.uid, ctime: Math.max(now, this.clock + 1), prev: this.clock };
    const place = JSON.stringify([creation?.key, device_id]);
    const replaced = creation?.key === undefined ? undefined : this.latest.get(place);
    const live = [...this.facts.items.values()].filter((item) => !hasExpired(item, stored.ctime));
    this.facts.replay(stored);
    this.messages.set(msg_id, stored);
    this.clock = stored.ctime;
    if (creation) this.latest.set(place, msg_id);
    const dead = live.filter((item) => item.msg_id !== replaced && !this.facts.items.has(item.msg_id));
    const result = { ...this.outcome(stored, now), dismissed: dead.length, replaced };
    return { message: stored, result: present(result) };
  }

  /** What is known about a stored message now. */
  outcome({ uid, msg_id, ctime }: StoredMessage, now: Time, status: "stored" | "duplicate" = "stored"): Result {
    const item = this.facts.items.get(msg_id);
    const visible = !!item && isVisible(item, undefined, now);
    return present({ status, uid, msg_id, ctime, visible, starts_at: item?.starts_at, expires_at: item?.expires_at });
  }

  /** What matters of a message that was just stored to a device that knows all before it. */
  reduced(message: StoredMessage, replaced: MsgID | undefined, deviceId: DeviceID): StoredMessage | undefined {
    const { msg_id, device_id, creation, dismissal, ...rest } = message;
    const isSeen = seenOn(device_id, deviceId);
    if (!creation || (isSeen && this.facts.items.has(msg_id))) return message;
    const ids = dismissal?.msg_ids ?? [];
    const more = isSeen && replaced !== undefined && !ids.includes(replaced) ? [replaced] : [];
    if (!dismissal && !more.length) return undefined;
    const left = present({ msg_id, device_id, dismissal: { ...dismissal, msg_ids: [...ids, ...more] } });
    return { ...rest, ...left };
  }
}

const contents = ({ device_id, creation, dismissal }: Message): string =>
  canonical([device_id, creation, dismissal]);

const rejection = (uid: UID, { msg_id }: Message, error: GregorError): Result => {
  const { code, message, action, field } = error;
  return { status: "rejected", uid, msg_id, error: present({ code, message, action, field }) };
};

export class FakeNode {
  private readonly _users = new Map<UID, StoredUser>();
  private readonly _conversations = new Set<Conversation>();

  constructor(readonly rules: NodeRules) {}

  user(uid: UID): StoredUser {
    const user = this._users.get(uid) ?? new StoredUser(uid);
    this._users.set(uid, user);
    return user;
  }

  /** Stores a message, and sends it to the user's devices. */
  consume(uid: UID, message: Message): Result {
    const user = this.user(uid);
    const known = user.messages.get(message.msg_id);
    if (known && contents(known) === contents(message)) return user.outcome(known, this.rules.now(), "duplicate");
    if (known) return rejection(uid, message, stop("conflict", "this msg_id is known with other contents"));
    const { starts, expires } = message.creation ?? {};
    const now = this.rules.now();
    if (starts && expires && after(starts, now) >= after(expires, now)) {
      return rejection(uid, message, invalid("creation.starts", "is not before the expiry"));
    }
    const prev = user.clock;
    const { message: stored, result } = user.store(message, now);
    for (const conversation of this._of(uid)) {
      const reduced = user.reduced(stored, result.replaced, conversation.deviceId);
      conversation.send({ type: "messages", prev, cursor: stored.ctime, messages: reduced ? [reduced] : [] });
    }
    return result;
  }

  /** Sends a message to the devices that are connected. */
  relay({ uid, system, body }: OutOfBandMessage): Result {
    for (const conversation of this._of(uid)) conversation.send({ type: "out_of_band", system, body });
    return { status: "relayed", uid };
  }

  /** Deletes everything of a user, on all devices too. */
  erase(uid: UID): void {
    const epoch = Math.max(this.rules.now(), this.user(uid).clock + 1);
    this._users.set(uid, new StoredUser(uid, epoch, epoch));
    for (const conversation of [...this._of(uid)]) conversation.erased(epoch);
  }

  /** A device has connected. */
  accept(peer: Peer): Conversation {
    const conversation = new Conversation(this, peer);
    this._conversations.add(conversation);
    return conversation;
  }

  forget(conversation: Conversation): void {
    this._conversations.delete(conversation);
  }

  private _of(uid: UID): Conversation[] {
    return [...this._conversations].filter((conversation) => conversation.uid === uid);
  }
}

interface Hello {
  readonly token: string;
  readonly device_id: DeviceID;
  readonly cursor?: Time;
  readonly epoch?: Time | null;
}

/** One connection of a device, as the node sees it. */
export class Conversation {
  /** The user, once the token is accepted. */
  uid: UID | undefined;
  deviceId: DeviceID = "";
  private _isOver = false;

  constructor(
    private readonly _node: FakeNode,
    private readonly _peer: Peer,
  ) {}

  send(frame: Frame): void {
    this._peer.send(frame);
  }

  receive(frame: Frame): void {
    if (this._isOver) return;
    switch (frame.type) {
      case "hello":
        return this._greet(frame as unknown as Hello);
      case "consume":
        return this._consume(frame["n"], frame["messages"] as (Message | OutOfBandMessage)[]);
      case "verify":
        return this._sync(frame["cursor"] as Time);
      default:
        return this._fail(4002, stop("protocol", `no node knows the frame ${frame.type}`));
    }
  }

  /** The user was erased, and the device belongs to the life before. */
  erased(epoch: Time): void {
    this.send({ type: "erased", epoch, uid: this.uid });
    this._end(4010, "the user was erased");
  }

  private _greet({ token, device_id, cursor = 0, epoch }: Hello): void {
    const { rules } = this._node;
    const uid = rules.identify(token);
    if (uid === undefined) {
      const problem = { code: "unauthenticated", action: "reauthenticate", message: "the token is invalid" };
      this.send({ type: "error", ...problem });
      return this._end(4001, problem.message);
    }
    const user = this._node.user(uid);
    this.uid = uid;
    this.deviceId = device_id;
    if ((epoch ?? user.epoch) < user.epoch) return this.erased(user.epoch);
    this.send({ type: "welcome", uid, device_id, now: rules.now(), epoch: user.epoch, limits: LIMITS });
    this._sync(cursor);
  }

  private get _user(): StoredUser {
    return this._node.user(this.uid ?? "");
  }

  private _sync(cursor: Time): void {
    const user = this._user;
    const as_of = this._node.rules.now();
    const end = { cursor: user.clock, as_of, hash: user.hash(this.deviceId, as_of) };
    this.send(
      cursor > 0 && cursor === user.clock
        ? { type: "sync", mode: "changes", prev: cursor, ...end }
        : { type: "sync", mode: "snapshot", prev: 0, ...end, items: user.sentTo(this.deviceId, as_of) },
    );
  }

  private _consume(n: unknown, messages: readonly (Message | OutOfBandMessage)[]): void {
    if (this.uid === undefined) return this._fail(4002, stop("protocol", "a hello comes first"));
    const { uid } = this;
    const results = messages.map((message) =>
      "system" in message ? this._node.relay({ ...message, uid }) : this._admit(uid, message),
    );
    this.send({ type: "ack", n, results });
  }

  private _admit(uid: UID, message: Message): Result {
    const reason = this._node.rules.refuse(message);
    return reason === undefined
      ? this._node.consume(uid, message)
      : rejection(uid, message, stop("invalid", reason));
  }

  private _fail(code: number, error: GregorError): void {
    const { message, action } = error;
    this.send({ type: "error", code: error.code, message, action });
    this._end(code, message);
  }

  private _end(code: number, reason: string): void {
    this._isOver = true;
    this._node.forget(this);
    this._peer.close(code, reason);
  }
}
