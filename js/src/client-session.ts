/**
 * The device's side of one conversation: a pure state machine.
 *
 * Input is a frame or an event; output is a list of effects, which the connection carries out in
 * order. The session knows the replica's cursor, which decides whether a frame continues what the
 * replica knows; it has no access to the replica itself. At most one `consume` is in flight.
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
  type Limits,
  type Messages,
  type Result,
  type SyncPage,
  type Welcome,
} from "./frames.js";
import type { Time } from "./instant.js";
import type { DeviceID, Item, Message, OutOfBandMessage, StoredMessage, UID } from "./message.js";
import { GREETING, frameIgnored, pageAccepted, syncExpected } from "./sync-state.js";

export type Effect =
  /** Write this frame. */
  | { readonly type: "send"; readonly frame: DeviceFrame }
  /** The node has authenticated this user, and its clock shows `now`. The user's epoch is earlier
   * than the replica's only if the store of the node is a restored backup: then a snapshot follows. */
  | {
      readonly type: "welcomed";
      readonly uid: UID;
      readonly limits: Limits;
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
  /** The consume in flight was not processed; retry its messages later. */
  | { readonly type: "deferred"; readonly error: ErrorFrame }
  /** Pass this out-of-band message to the application. */
  | { readonly type: "deliver_out_of_band"; readonly system: string; readonly body: unknown }
  /** The node reports an error, or is for another user; `error.action` says what to do after it has disconnected. */
  | { readonly type: "failed"; readonly error: Problem }
  /** Reconnect, to any node, after a random delay of up to `within_ms`. */
  | { readonly type: "reconnect"; readonly within_ms: number }
  /** The user was erased, at this ctime; null: the node has not said when. Forget all of the user,
   * and end the conversation. */
  | { readonly type: "erased"; readonly epoch: Time | null };

/** What a session begins with. Each connection has a new one, which starts at the replica's cursor,
 * epoch and uid (null: the device has never had a welcome). If the node's version is without epochs,
 * the hello has to be `withoutEpoch`. */
export interface SessionOptions {
  readonly token: string;
  readonly deviceId: DeviceID;
  readonly cursor: Time;
  readonly epoch?: Time | null;
  readonly uid?: UID | null;
  readonly withoutEpoch?: boolean;
  readonly exactIntegers?: boolean | undefined;
}

const ERASED_CLOSE_CODE = 4010;

/** The device's side of one conversation with a node. It does no I/O; it returns effects. */
export class ClientSession {
  cursor: Time;
  epoch: Time | null;
  /** How many states did not have the hash that the node has said. */
  mismatches = 0;
  private readonly _options: SessionOptions;
  private _state = GREETING;
  private _hasHeardOfErase = false;
  /** How many messages the consume in flight holds; 0: none is in flight. */
  private _inFlight = 0;
  /** The number of the last consume. */
  private _n = 0;
  /** A snapshot is requested after an error, and no page has come since. */
  private _isResyncRequested = false;
  /** The last complete one. */
  private _lastSync: SyncPage["mode"] | undefined;

  constructor(options: SessionOptions) {
    this._options = options;
    this.cursor = options.cursor;
    this.epoch = options.epoch ?? null;
  }

  /** Whether the last sync is complete, and nothing is known to be missing. */
  get isUpToDate(): boolean {
    return this._state.phase === "up to date";
  }

  /** Whether a consume may be sent: the node has welcomed us, and none is in flight. */
  get mayConsume(): boolean {
    return this._state.phase !== "greeting" && !this._inFlight;
  }

  /** The connection is open: say hello. */
  opened(): Effect[] {
    const { token, deviceId, withoutEpoch } = this._options;
    return send({
      type: "hello",
      token,
      device_id: deviceId,
      ...(this.cursor && { cursor: this.cursor }),
      ...(this.epoch !== null && !withoutEpoch && { epoch: this.epoch }),
      protocol: PROTOCOL,
    });
  }

  /** Send messages, if `mayConsume`. `acked` or `deferred` will report their results. */
  consume(messages: readonly (Message | OutOfBandMessage)[]): Effect[] {
    if (!this.mayConsume || !messages.length) return [];
    this._inFlight = messages.length;
    return send({ type: "consume", n: ++this._n, messages });
  }

  /** Ask for a sync; from cursor 0 for a snapshot. */
  verify(cursor = this.cursor): Effect[] {
    this._state = syncExpected(this._state);
    return send({ type: "verify", cursor });
  }

  /** Report whether the replica has the hash of a `compare`. If not, the session requests a
   * snapshot; unless the sync was a snapshot itself, since another one would not help. */
  hashCompared(equal: boolean): Effect[] {
    if (equal) return [];
    this.mismatches++;
    return this._lastSync === "snapshot" ? [] : this.verify(0);
  }

  /** The connection has ended with this close code. It may say what a lost frame has said. */
  disconnected(code: number): Effect[] {
    return code === ERASED_CLOSE_CODE ? this._erased() : [];
  }

  /** Process a frame. Throws `malformed` if the text is not a frame; then nothing changes. */
  receive(json: string): Effect[] {
    const frame = decodeNodeFrame(json, this._options.exactIntegers);
    switch (frame?.type) {
      case "welcome":
        return this._welcomed(frame);
      case "sync":
        return this._sync(frame);
      case "messages":
        return this._apply(frame);
      case "out_of_band":
        return [{ type: "deliver_out_of_band", system: frame.system, body: frame.body }];
      case "ack":
        return this._acked(frame);
      case "error":
        return this._failed(frame);
      case "goaway":
        return [{ type: "reconnect", within_ms: frame.reconnect_after_ms }];
      case "erased":
        return this._isOwner(frame.uid) ? this._erased(frame.epoch) : this._refused(frame.uid);
      default:
        return [];
    }
  }

  private _welcomed({ uid, now, limits, epoch: told }: Welcome): Effect[] {
    const known = this.epoch ?? 0;
    // Whatever a node without epochs says leaves the epoch as it is: with an earlier one, the next
    // node would take the device for one that has not heard of the erase.
    const epoch = told ?? known;
    if (this.epoch !== null && epoch > known && this._isOwner(uid)) return this._erased(epoch);
    this.epoch = epoch;
    this._state = syncExpected(this._state);
    const { messages = 500, ids_days = 0 } = limits;
    return [
      { type: "welcomed", uid, limits: { messages: Math.max(1, messages), ids_days }, now, epoch },
    ];
  }

  /** Whether what is said of this user is of the device's user. Undefined: nobody has said. */
  private _isOwner(uid: UID | undefined): boolean {
    const owner = this._options.uid ?? uid;
    return uid === undefined || uid === owner;
  }

  /** The token is another user's, so nothing that the node says is for this device. */
  private _refused(uid: UID | undefined): Effect[] {
    this._hasHeardOfErase = true; // and a close code is not, either
    const { uid: owner } = this._options;
    const error = stop("forbidden", `the token is of the user ${uid}, and this store belongs to ${owner}`);
    return [{ type: "failed", error }];
  }

  /** The node says that the user was erased: forget the user, unless the device knows that. */
  private _erased(epoch?: Time): Effect[] {
    const hasHeard = this._hasHeardOfErase;
    this._hasHeardOfErase = true;
    if (epoch === undefined) return hasHeard ? [] : [{ type: "erased", epoch: null }];
    if (this.epoch !== null && epoch <= this.epoch) return [];
    this.epoch = epoch;
    return [{ type: "erased", epoch }];
  }

  private _failed(error: ErrorFrame): Effect[] {
    if (error.code === "erased") return this._erased();
    if (error.n !== undefined) return this._isSettled(error.n) ? [{ type: "deferred", error }] : [];
    if (error.action !== "resync" || this._isResyncRequested) return [{ type: "failed", error }];
    this._isResyncRequested = true;
    return this.verify(0);
  }

  private _acked({ n, results }: Ack): Effect[] {
    const erased = results.find(({ error }) => error?.code === "erased");
    if (erased) return this._erased(erased.error?.epoch);
    if (n === this._n && this._inFlight && results.length !== this._inFlight) {
      throw stop("malformed", "the ack has not one of `results` for each message", "results");
    }
    return this._isSettled(n) ? [{ type: "acked", results }] : [];
  }

  /** Whether this is the answer to the consume in flight, which then is not any more. */
  private _isSettled(n: number): boolean {
    if (n !== this._n || !this._inFlight) return false;
    this._inFlight = 0;
    return true;
  }

  private _apply({ prev, messages, cursor }: Messages): Effect[] {
    if (cursor <= this.cursor) return [];
    if (!this.isUpToDate) {
      // The sync in progress starts at our cursor, so the cursor must not move.
      this._state = frameIgnored(this._state, cursor);
      return [];
    }
    if (prev !== this.cursor) return this.verify();
    this.cursor = cursor;
    return [{ type: "apply", messages, cursor }];
  }

  private _sync(page: SyncPage): Effect[] {
    if (!this._continuesCursor(page)) return this._ignore(page);
    this._isResyncRequested = false;
    const effects = this._contentOf(page);
    this._state = pageAccepted(this._state, page);
    if (page.more) return effects;
    this._lastSync = page.mode;
    effects.push({ type: "compare", as_of: page.as_of, hash: page.hash });
    return this.isUpToDate ? effects : [...effects, ...this.verify()];
  }

  /** Whether a page continues from our cursor. A node sends an unrequested sync when it has dropped
   * its queue for us, and a transport may deliver an old page again. */
  private _continuesCursor({ mode, prev, cursor }: SyncPage): boolean {
    if (mode === "changes") return prev === this.cursor;
    // The first sync may end before our cursor: the node's store may be a restored backup.
    return !this._lastSync || cursor >= this.cursor;
  }

  private _ignore({ cursor }: SyncPage): Effect[] {
    if (cursor <= this.cursor) return [];
    const wasUpToDate = this.isUpToDate;
    this._state = frameIgnored(this._state, cursor);
    return wasUpToDate ? this.verify() : [];
  }

  /** What a page changes: one of changes at once, one of a snapshot with the last page. */
  private _contentOf(page: SyncPage): Effect[] {
    const { mode, more, cursor, messages = [] } = page;
    if (mode === "snapshot" && more) return [];
    this.cursor = cursor;
    if (mode === "changes") return [{ type: "apply", messages, cursor }];
    const items = [...this._state.pages, page].flatMap((each) => each.items ?? []);
    return [{ type: "replace", items, cursor, epoch: this.epoch }];
  }
}

const send = (frame: DeviceFrame): Effect[] => [{ type: "send", frame }];
