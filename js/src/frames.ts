/**
 * The frames of the conversation, as specified in `spec/protocol.md`.
 *
 * A device ignores what it does not know, so that old devices stay connected to new nodes: unknown
 * frame types, unknown fields, and messages of which nothing is left. What it knows has the right
 * type, or the frame is malformed. The rules of the data model are left to the nodes, which have
 * checked them before they have stored a message.
 */

import { stop, type Action, type Problem } from "./errors.js";
import type { Time, TimeOrOffset } from "./instant.js";
import { decode } from "./json.js";
import type {
  Creation,
  DeviceID,
  Dismissal,
  Item,
  KeyDismissal,
  Message,
  MsgID,
  OutOfBandMessage,
  Range,
  StoredMessage,
  UID,
} from "./message.js";

export const PROTOCOL = 2;

// Device to node

/** The first frame of every conversation: the device's token, id and cursor. */
export interface Hello {
  readonly type: "hello";
  readonly token: string;
  readonly device_id: DeviceID;
  readonly cursor?: Time;
  readonly epoch?: Time;
  readonly protocol: number;
}

/** Messages from this device. */
export interface Consume {
  readonly type: "consume";
  readonly n: number;
  readonly messages: readonly (Message | OutOfBandMessage)[];
}

/** Requests a sync from this cursor, with its hash; from 0, a snapshot. */
export interface Verify {
  readonly type: "verify";
  readonly cursor: Time;
}

export type DeviceFrame = Hello | Consume | Verify;

// Node to device

/** What a device has to know of the limits of a node: how many messages a consume may hold. */
export interface Limits {
  readonly messages: number;
}

/** The token is valid. `epoch` is the user's; without it, this node is of a version without. */
export interface Welcome {
  readonly uid: UID;
  readonly now: Time;
  readonly limits: Partial<Limits>;
  readonly epoch?: Time;
}

/** One page of a sync. Changes continue `prev`; in a snapshot it is 0. `cursor` is the cursor of the
 * replica after this page (of a snapshot: after the last page). With `more`, another page follows.
 * The hash is that of the state after the last page. */
export interface SyncPage {
  readonly mode: "changes" | "snapshot";
  readonly prev: Time;
  readonly cursor: Time;
  readonly as_of: Time;
  readonly hash: string;
  readonly more?: boolean;
  readonly messages?: readonly StoredMessage[];
  readonly items?: readonly Item[];
}

/** The messages for this device after `prev`, up to `cursor` inclusive. */
export interface Messages {
  readonly prev: Time;
  readonly messages: readonly StoredMessage[];
  readonly cursor: Time;
}

export interface OutOfBand {
  readonly system: string;
  readonly body: unknown;
}

/** The result of one message: `relayed` if it is out-of-band; only `rejected` has an error. */
export interface Result {
  readonly status: "stored" | "duplicate" | "rejected" | "relayed";
  readonly uid?: UID;
  readonly msg_id?: MsgID;
  readonly ctime?: Time;
  readonly error?: Problem;
  /** Of a message that is stored: whether its item is visible now, when that begins and ends, and
   * the id of the one whose place it has taken. */
  readonly visible?: boolean;
  readonly starts_at?: Time;
  readonly expires_at?: Time;
  readonly replaced?: MsgID;
}

export interface Ack {
  readonly n: number;
  readonly results: readonly Result[];
}

/** An error. With `n`, the consume of that number was not processed. */
export interface ErrorFrame {
  readonly code: string;
  readonly message: string;
  readonly action: Action;
  readonly field?: string;
  readonly n?: number;
  readonly limit?: string;
  readonly maximum?: number;
  readonly retry_after_ms?: number;
}

/** Asks the device to reconnect, to any node, after a random delay of up to this time. */
export interface GoAway {
  readonly reconnect_after_ms: number;
}

/** The user with this uid was erased, at this ctime. */
export interface UserErased {
  readonly epoch: Time;
  readonly uid?: UID;
}

interface NodeFrames {
  welcome: Welcome;
  sync: SyncPage;
  messages: Messages;
  out_of_band: OutOfBand;
  ack: Ack;
  error: ErrorFrame;
  goaway: GoAway;
  erased: UserErased;
}

export type NodeFrame = {
  [Type in keyof NodeFrames]: { readonly type: Type } & NodeFrames[Type];
}[keyof NodeFrames];

// Reading

/** Returns the value without what is unknown in it, or throws `malformed`, which names the field. */
export type Reader<T> = (value: unknown, name: string) => T;

type Readers<T> = {
  readonly [Name in keyof T]-?: Reader<
    T extends Record<Name, T[Name]> ? T[Name] : T[Name] | undefined
  >;
};

const valueThat =
  <T>(isValid: (value: unknown) => unknown): Reader<T> =>
  (value, name) => {
    if (isValid(value)) return value as T;
    throw stop("malformed", `no valid \`${name}\``, name);
  };

export const text = valueThat<string>((value) => typeof value === "string");
export const flag = valueThat<boolean>((value) => value === !!value);
export const integer = valueThat<number>(Number.isSafeInteger);
export const time = valueThat<Time>((value) => Number.isSafeInteger(value) && (value as Time) >= 0);
const any = valueThat<unknown>((value) => value !== undefined);
const oneOf = <T>(...values: readonly T[]): Reader<T> =>
  valueThat((value) => values.includes(value as T));

export const optional =
  <T>(read: Reader<T>): Reader<T | undefined> =>
  (value, name) =>
    value == null ? undefined : read(value, name);

const array = valueThat<readonly unknown[]>(Array.isArray);
const list =
  <T>(read: Reader<T>): Reader<readonly T[]> =>
  (value, name) =>
    array(value, name).map((each) => read(each, name));

const anObject = valueThat<Readonly<Record<string, unknown>>>(
  (value) => value && typeof value === "object" && !Array.isArray(value),
);
export const object =
  <T extends object>(readers: Readers<T>): Reader<T> =>
  (value, of) => {
    const given = anObject(value, of);
    const known: Partial<T> = {};
    for (const name in readers) {
      const part = readers[name](given[name], name);
      if (part !== undefined) known[name] = part as T[typeof name];
    }
    return known as T;
  };

/** Nodes have replaced text by the integer that it means. */
const timeOrOffset: Reader<TimeOrOffset> = (value, name) => {
  const given = anObject(value, name);
  return given.time == null ? { offset: integer(given.offset, name) } : { time: time(given.time, name) };
};

const creation = object<Creation>({
  category: text,
  body: any,
  expires: optional(timeOrOffset),
  starts: optional(timeOrOffset),
  key: optional(text),
});

const dismissal = object<Dismissal>({
  msg_ids: optional(list(text)),
  ranges: optional(
    list(
      object<Range>({
        category: text,
        end_time: optional(timeOrOffset),
        skip_msg_ids: optional(list(text)),
        prefix: optional(flag),
        scheduled: optional(flag),
      }),
    ),
  ),
  keys: optional(list(object<KeyDismissal>({ key: text, end_time: optional(timeOrOffset) }))),
});

export const message = object<StoredMessage>({
  uid: text,
  msg_id: text,
  ctime: time,
  prev: optional(time),
  device_id: optional(text),
  creation: optional(creation),
  dismissal: optional(dismissal),
});

const messages: Reader<readonly StoredMessage[]> = (value, name) =>
  list(message)(value, name).filter(
    ({ creation, dismissal = {} }) => creation ?? Object.values(dismissal).some((part) => part.length),
  );

export const item = object<Item>({
  msg_id: text,
  ctime: time,
  category: text,
  body: any,
  device_id: optional(text),
  expires_at: optional(time),
  starts_at: optional(time),
  key: optional(text),
});

const reason = {
  code: text,
  message: text,
  action: oneOf<Action>("retry", "resync", "reauthenticate", "stop"),
  field: optional(text),
  limit: optional(text),
  maximum: optional(integer),
  retry_after_ms: optional(integer),
};

export const problem = object<Problem>({ ...reason, epoch: optional(time) });

const FRAMES: { readonly [Type in keyof NodeFrames]: Reader<NodeFrames[Type]> } = {
  welcome: object<Welcome>({
    uid: text,
    now: time,
    limits: object<Partial<Limits>>({ messages: optional(integer) }),
    epoch: optional(time),
  }),
  sync: object<SyncPage>({
    mode: oneOf("changes", "snapshot"),
    prev: time,
    cursor: time,
    as_of: time,
    hash: text,
    more: optional(flag),
    messages: optional(messages),
    items: optional(list(item)),
  }),
  messages: object<Messages>({ prev: time, messages, cursor: time }),
  out_of_band: object<OutOfBand>({ system: text, body: any }),
  ack: object<Ack>({
    n: integer,
    results: list(
      object<Result>({
        status: oneOf("stored", "duplicate", "rejected", "relayed"),
        uid: optional(text),
        msg_id: optional(text),
        ctime: optional(time),
        error: optional(problem),
        visible: optional(flag),
        starts_at: optional(time),
        expires_at: optional(time),
        replaced: optional(text),
      }),
    ),
  }),
  error: object<ErrorFrame>({ ...reason, n: optional(integer) }),
  goaway: object<GoAway>({ reconnect_after_ms: integer }),
  erased: object<UserErased>({ epoch: time, uid: optional(text) }),
};

/** The frame of a node; undefined if its type is one of a later version. Throws `malformed` if the
 * text is no frame of any version. With `exactIntegers`, see `json.ts`. */
export function decodeNodeFrame(json: string, exactIntegers?: boolean): NodeFrame | undefined {
  let frame;
  try {
    frame = anObject(decode(json, exactIntegers), "frame");
  } catch {
    throw stop("malformed", "no JSON object");
  }
  const type = text(frame.type, "type");
  return isKnown(type) ? ({ type, ...FRAMES[type](frame, "frame") } as NodeFrame) : undefined;
}

const isKnown = (type: string): type is keyof NodeFrames => Object.hasOwn(FRAMES, type);
