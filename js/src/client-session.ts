/**
 * The device's side of one conversation: a pure state machine.
 *
 * Input is a frame or an event; output is a list of effects, which the connection carries out in
 * order. The session knows the replica's cursor, which decides whether a frame continues what the
 * replica knows; it has no access to the replica itself. At most one `consume` is in flight.
 *
 * A device applies a `messages` frame if it continues the replica's cursor. That is all that happens
 * while it is up to date. A frame that does not continue the cursor reveals a gap; the device asks
 * for a sync, and is syncing until its last page has come. During a sync the cursor must stay where
 * the sync begins, so `messages` frames are ignored. The sync usually contains them, because the
 * node reads it later than it has sent them. To be certain, the device notes the highest cursor of
 * all that it has ignored. If the sync ends before it, the device asks for another one.
 *
 * Pages of changes are applied as they come. Pages of a snapshot are collected, because a replica
 * with half of a snapshot would show half of a state. A node may send a sync without being asked, so
 * a page can come in every phase, also before the welcome, over a transport that reorders.
 *
 * It knows the user's epoch, too: the ctime of the last erase that the replica has heard of. A node
 * that knows a later one says so in an `erased` frame, or, if it was not told the epoch, in its
 * welcome. However the session hears of an erase, it then says to forget the user.
 */

import { stop, type Problem } from "./errors.js";
import {
  PROTOCOL,
  decodeNodeFrame,
  type Ack,
  type DeviceFrame,
  type ErrorFrame,
  type Messages,
  type NodeFrame,
  type Result,
  type SyncPage,
  type Welcome,
} from "./frames.js";
import type { Time } from "./instant.js";
import { present } from "./json.js";
import type { DeviceID, Item, Message, OutOfBandMessage, StoredMessage, UID } from "./message.js";

export type Effect =
  /** Write this frame. */
  | { readonly type: "send"; readonly frame: DeviceFrame }
  /** The node has authenticated this user, and its clock shows `now`. A consume may hold so many
   * `messages`. The user's epoch is earlier
   * than the replica's only if the store of the node is a restored backup: then a snapshot follows. */
  | {
      readonly type: "welcomed";
      readonly uid: UID;
      readonly messages: number;
      readonly now: Time;
      readonly epoch: Time;
    }
  /** Replay these messages; the replica then knows everything up to `cursor`. */
  | { readonly type: "apply"; readonly messages: readonly StoredMessage[]; readonly cursor: Time }
  /** Replace all that came from the server with this snapshot. Keep the outbox and the hidden items.
   * The replica then has this epoch (null: the one that it has). */
  | {
      readonly type: "replace";
      readonly items: readonly Item[];
      readonly cursor: Time;
      readonly epoch: Time | null;
    }
  /** The sync is complete. Pass to `hashCompared` whether the state at `as_of` has this hash. */
  | { readonly type: "compare"; readonly as_of: Time; readonly hash: string }
  /** The results of the messages of the consume in flight, in order. */
  | { readonly type: "acked"; readonly results: readonly Result[] }
  /** The consume in flight was not processed; retry its messages later, before any others. */
  | { readonly type: "deferred"; readonly error: ErrorFrame }
  /** Pass this out-of-band message to the application. */
  | { readonly type: "deliver_out_of_band"; readonly system: string; readonly body: unknown }
  /** The node reports an error, or the token is another user's; `error.action` says what to do after
   * it has disconnected. */
  | { readonly type: "failed"; readonly error: Problem }
  /** Reconnect, to any node, after a random delay of up to `within_ms`. */
  | { readonly type: "reconnect"; readonly within_ms: number }
  /** The user was erased, at this ctime; null: the node has not said when. Forget all of the user,
   * and end the conversation. */
  | { readonly type: "erased"; readonly epoch: Time | null };

const ERASED_CLOSE_CODE = 4010;

/** The device's side of one conversation with a node. It does no I/O; it returns effects. */
export interface ClientSession {
  /** The epoch that the device has, as far as the session knows. */
  readonly epoch: Time | null;
  /** Whether the last sync is complete, and nothing is known to be missing. */
  readonly isUpToDate: boolean;
  /** Whether a consume may be sent: the node has welcomed us, and none is in flight. */
  readonly mayConsume: boolean;
  /** The connection is open: say hello. */
  opened(): Effect[];
  /** Send messages, if `mayConsume`. `acked` or `deferred` will report their results. */
  consume(messages: readonly (Message | OutOfBandMessage)[]): Effect[];
  /** Ask for a sync, by default from the replica's cursor; from 0 for a snapshot. */
  verify(from?: Time): Effect[];
  /** Report whether the replica has the hash of a `compare`. If not, the session requests a snapshot;
   * unless the sync was a snapshot itself, since another one would not help. */
  hashCompared(equal: boolean): Effect[];
  /** Process a frame. Throws `malformed` if the text is not a frame; then nothing changes. */
  receive(json: string): Effect[];
  /** The connection has ended with this close code. It may say what a lost frame has said. */
  disconnected(code: number): Effect[];
}

/** What a session begins with: the replica's cursor, epoch and uid (null: the device has never had a
 * welcome). If the node's version is without epochs, the hello has to be `withoutEpoch`. Of
 * `exactIntegers`, see `json.ts`. */
export interface SessionOptions {
  readonly token: string;
  readonly deviceId: DeviceID;
  readonly cursor: Time;
  readonly epoch?: Time | null | undefined;
  readonly uid?: UID | null | undefined;
  readonly withoutEpoch?: boolean | undefined;
  readonly exactIntegers?: boolean | undefined;
}

/** A session for a new connection. */
export function clientSession({
  token,
  deviceId,
  cursor,
  epoch = null,
  uid: owner = null,
  withoutEpoch,
  exactIntegers,
}: SessionOptions): ClientSession {
  let phase: "greeting" | "syncing" | "up to date" = "greeting";
  /** The pages of the snapshot that is on its way. */
  let pages: SyncPage[] = [];
  /** The highest cursor of the frames that were ignored during this sync. */
  let highest: Time = 0;
  let hasHeardOfErase = false;
  /** The number of the last consume, and how many messages it holds; 0: it is answered. */
  let lastConsume = 0;
  let inFlight = 0;
  /** A snapshot is requested after an error, and no page has come since. */
  let isResyncRequested = false;
  /** The last complete one. */
  let lastSync: SyncPage["mode"] | undefined;

  function verify(from = cursor): Effect[] {
    phase = "syncing";
    return [{ type: "send", frame: { type: "verify", cursor: from } }];
  }

  function effectsOf(frame: NodeFrame): Effect[] {
    switch (frame.type) {
      case "welcome":
        return foreign(frame.uid) ?? welcomed(frame);
      case "sync":
        return continuesCursor(frame) ? accept(frame) : ignore(frame.cursor);
      case "messages":
        return apply(frame);
      case "out_of_band":
        return [{ ...frame, type: "deliver_out_of_band" }];
      case "ack":
        return acked(frame);
      case "error":
        return failed(frame);
      case "goaway":
        return [{ type: "reconnect", within_ms: frame.reconnect_after_ms }];
      case "erased":
        return foreign(frame.uid) ?? erased(frame.epoch);
    }
  }

  /** What to do if the token is another user's: nothing that the node says is for this device, and
   * its close code is not, either. */
  function foreign(uid = owner): Effect[] | undefined {
    if (owner === null || uid === owner) return undefined;
    hasHeardOfErase = true;
    const reason = `the token is of ${uid}, the store of ${owner}`;
    return [{ type: "failed", error: stop("forbidden", reason) }];
  }

  function welcomed({ uid, now, limits, epoch: told }: Welcome): Effect[] {
    if (epoch !== null && told !== undefined && told > epoch) return erased(told);
    // Whatever a node without epochs says leaves the epoch as it is: with an earlier one, the next
    // node would take the device for one that has not heard of the erase.
    epoch = told ?? epoch ?? 0;
    phase = "syncing";
    const { messages = 500 } = limits;
    return [
      { type: "welcomed", uid, messages: Math.max(1, messages), now, epoch },
    ];
  }

  /** The node says that the user was erased: forget the user, unless the device knows that. What says
   * no epoch may follow a frame that says it. */
  function erased(told: Time | null = null): Effect[] {
    const isKnown = told === null ? hasHeardOfErase : epoch !== null && told <= epoch;
    hasHeardOfErase = true;
    if (isKnown) return [];
    epoch = told ?? epoch;
    return [{ type: "erased", epoch: told }];
  }

  function failed(error: ErrorFrame): Effect[] {
    if (error.code === "erased") return erased();
    if (error.n !== undefined) return deferred(error.n, error);
    if (error.action !== "resync" || isResyncRequested) return [{ type: "failed", error }];
    isResyncRequested = true;
    return verify(0);
  }

  function acked({ n, results }: Ack): Effect[] {
    const isErased = results.find(({ error }) => error?.code === "erased");
    if (isErased) return erased(isErased.error?.epoch);
    if (n === lastConsume && inFlight && results.length !== inFlight) {
      throw stop("malformed", "no valid `results`", "results");
    }
    return settled(n, { type: "acked", results });
  }

  /** If the consume may be taken later, its number is to come again: until then the node takes no
   * other. */
  function deferred(n: number, error: ErrorFrame): Effect[] {
    const effects = settled(n, { type: "deferred", error });
    if (effects.length && error.action === "retry") lastConsume--;
    return effects;
  }

  /** The effect, if this is the answer to the consume in flight; then none is in flight any more. */
  function settled(n: number, effect: Effect): Effect[] {
    if (n !== lastConsume || !inFlight) return [];
    inFlight = 0;
    return [effect];
  }

  function apply({ prev, messages, cursor: end }: Messages): Effect[] {
    // During a sync, which starts at our cursor, the cursor must not move.
    if (end <= cursor || phase !== "up to date") return ignore(end);
    if (prev !== cursor) return verify();
    cursor = end;
    return [{ type: "apply", messages, cursor }];
  }

  /** What is old is ignored; what is not applied, although it is new, is missing afterwards. */
  function ignore(end: Time): Effect[] {
    if (end <= cursor) return [];
    highest = Math.max(highest, end);
    return phase === "up to date" ? verify() : [];
  }

  /** Whether a page continues from our cursor. A node sends an unrequested sync when it has dropped
   * its queue for us, and a transport may deliver an old page again. */
  function continuesCursor({ mode, prev, cursor: end }: SyncPage): boolean {
    if (mode === "changes") return prev === cursor;
    // The first sync may end before our cursor: the node's store may be a restored backup.
    return !lastSync || end >= cursor;
  }

  function accept(page: SyncPage): Effect[] {
    isResyncRequested = false;
    phase = "syncing";
    const effects = contentOf(page);
    if (page.more) return effects;
    pages = [];
    lastSync = page.mode;
    effects.push({ type: "compare", as_of: page.as_of, hash: page.hash });
    if (highest > cursor) return [...effects, ...verify()];
    phase = "up to date";
    highest = 0;
    return effects;
  }

  /** What a page changes: one of changes at once, one of a snapshot with the last page. */
  function contentOf(page: SyncPage): Effect[] {
    const { mode, more, messages = [] } = page;
    if (mode === "snapshot") pages.push(page);
    if (mode === "snapshot" && more) return [];
    cursor = page.cursor;
    if (mode === "changes") return [{ type: "apply", messages, cursor }];
    return [{ type: "replace", items: pages.flatMap(({ items = [] }) => items), cursor, epoch }];
  }

  return {
    get epoch() {
      return epoch;
    },
    get isUpToDate() {
      return phase === "up to date";
    },
    get mayConsume() {
      return phase !== "greeting" && !inFlight;
    },
    opened: () => [
      {
        type: "send",
        frame: present({
          type: "hello" as const,
          token,
          device_id: deviceId,
          cursor: cursor || undefined,
          epoch: withoutEpoch ? undefined : (epoch ?? undefined),
          protocol: PROTOCOL,
        }),
      },
    ],
    consume(messages) {
      if (!this.mayConsume || !messages.length) return [];
      inFlight = messages.length;
      return [{ type: "send", frame: { type: "consume", n: ++lastConsume, messages } }];
    },
    verify,
    hashCompared: (equal) => (equal || lastSync === "snapshot" ? [] : verify(0)),
    receive(json) {
      const frame = decodeNodeFrame(json, exactIntegers);
      return frame ? effectsOf(frame) : [];
    },
    disconnected: (code) => (code === ERASED_CLOSE_CODE ? erased() : []),
  };
}
